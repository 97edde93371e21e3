"""The language model's head on labelled positions only, a few at a time."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medfinetune.decoder.collator import IGNORED

CHUNK_POSITIONS = 128
BYTES_A_SCORE = 14
"""Scores in 16 bits and in 32, their log-softmax and its gradient, while a chunk is worked on."""


def score_labels_only(model: nn.Module) -> None:
    """Lets `SFTTrainer` score the labelled positions of a Mllama and no others, on every device.

    TRL's own head does so with Triton; elsewhere it scores the prompt and the padding too. Calling the model without
    TRL's `fused_lm_head=True` is as before.

    Args:
        model: A `MllamaForConditionalGeneration` without adapters around it, to which TRL has added its head.
    """
    model.forward = MethodType(_forward, model)


def score_labels(
    head: nn.Module, hidden: Tensor, targets: Tensor, chunk_positions: int = CHUNK_POSITIONS
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the whole vocabulary are made for `chunk_positions` at once, and again in the backward.

    Args:
        head: From hidden states to scores of the vocabulary.
        hidden: `(N, D)`.
        targets: `(N,)`, token ids.
        chunk_positions: Positions at once; memory grows with them.

    Returns:
        Log-probabilities of the targets in nats, entropies in nats without a gradient, and whether the target is the
        likeliest token, each `(N,)`.
    """
    # Where nothing is labelled, an empty product still ties the loss to the model.
    parts = [
        checkpoint(_score, head, states, tokens, use_reentrant=False)
        for states, tokens in zip(hidden.split(chunk_positions), targets.split(chunk_positions), strict=True)
    ]
    log_probs, entropies, best = (torch.cat(part) for part in zip(*parts, strict=True))
    return log_probs, entropies, best


def _score(head: nn.Module, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_probs = head(hidden).float().log_softmax(dim=-1)
    with torch.no_grad():
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
        best = log_probs.argmax(dim=-1) == targets
    return log_probs.gather(1, targets[:, None])[:, 0], entropies, best


def _forward(
    model: Any,
    *args: Any,
    fused_lm_head: bool = False,
    labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **kwargs: Any,
) -> Any:
    if not fused_lm_head:
        return type(model).forward(model, *args, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs)
    # Here, so that the rest also serves where TRL is not installed.
    from trl.trainer.utils import FusedCausalLMOutput

    hidden = model.model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    places = labelled.nonzero(as_tuple=True)
    scores = score_labels(model.lm_head, hidden[places], targets[places])
    log_probs, entropies, best = (score.new_zeros(labelled.shape).masked_scatter(labelled, score) for score in scores)
    count = labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / count, log_probs=log_probs, entropy=entropies, is_top1=best, label_mask=labelled
    )

"""Greedy answers of a Mllama, and how well it foresees given ones."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from medfinetune.decoder.chat_tokens import IGNORED
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.rows import with_empty_image


@torch.no_grad()
def generate(
    model: Any,
    processor: Any,
    chats: Sequence[dict[str, Any]],
    max_new_tokens: int = 256,
    batch_size: int = 8,
    max_length: int = 2048,
    date_string: str = "26 Jul 2024",
    progress: bool = True,
    in_step: bool = False,
) -> list[str]:
    """Answers the last user turn of each chat, greedily.

    Args:
        model: A Mllama, with or without adapters.
        processor: Its processor.
        chats: What the collator takes; an answer at the end, or a completion, is not shown to the model.
        max_new_tokens: Tokens of an answer at most.
        batch_size: Chats at once.
        max_length: Tokens of a prompt at most.
        date_string: As in training.
        progress: Whether a bar is shown.
        in_step: Whether all processes go on until the last has its answers, as ZeRO-3 needs it.

    Returns:
        One text for each chat, without special tokens.
    """
    model.eval()
    collator = MllamaCollator(processor, max_length, date_string=date_string, for_generation=True)
    answers: list[str] = []
    for rows in _batches(chats, batch_size, "generating", progress):
        batch = collator(rows)
        if in_step:
            batch = with_empty_image(batch, model.config)  # all must run the same layers
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        # The checkpoint's own generation config samples; a score must not depend on luck.
        output = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            synced_gpus=in_step,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


@torch.no_grad()
def perplexity(
    model: Any,
    processor: Any,
    chats: Sequence[dict[str, Any]],
    batch_size: int = 8,
    max_length: int = 2048,
    date_string: str = "26 Jul 2024",
) -> dict[str, float]:
    """Exponential of the mean negative log-likelihood of the assistant's tokens, the end of turn included.

    Returns:
        `perplexity` (1 is best) and `num_tokens`, how many were scored.
    """
    model.eval()
    mllama = model.get_base_model() if hasattr(model, "get_base_model") else model
    collator = MllamaCollator(processor, max_length, date_string=date_string)
    total, num_tokens = 0.0, 0
    for rows in _batches(chats, batch_size, "perplexity"):
        batch = {name: tensor.to(model.device) for name, tensor in collator(rows).items()}
        targets = batch.pop("labels")[:, 1:]
        hidden = mllama.model(**batch, use_cache=False).last_hidden_state[:, :-1]
        scored = targets != IGNORED
        # Only the labelled positions go through the head: whole-vocabulary scores of a batch would not fit.
        logits = mllama.lm_head(hidden[scored]).float()
        total += F.cross_entropy(logits, targets[scored], reduction="sum").item()
        num_tokens += int(scored.sum())
    return {"perplexity": math.exp(total / num_tokens) if num_tokens else math.nan, "num_tokens": num_tokens}


def _batches(
    chats: Sequence[dict[str, Any]], batch_size: int, what: str, show: bool = True
) -> Iterator[list[dict[str, Any]]]:
    with tqdm(total=len(chats), desc=what, unit="chat", leave=False, disable=not show) as progress:
        for start in range(0, len(chats), batch_size):
            rows = [chats[i] for i in range(start, min(start + batch_size, len(chats)))]
            yield rows
            progress.update(len(rows))

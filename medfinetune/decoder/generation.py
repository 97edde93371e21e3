"""Answers of a Mllama, greedy or drawn, and how well it foresees given ones."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LogitsProcessor

from medfinetune.decoder.chat_tokens import IGNORED
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.rows import with_empty_image
from medfinetune.decoder.sampling import RowSampler

OnTimes = Callable[[float, float, int, int], None]
"""Is told the seconds until a batch's first tokens and from there to its last, its rows, and the steps it took."""


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
        answers += _write(model, processor, batch, max_new_tokens, in_step)
    return answers


@torch.no_grad()
def generate_candidates(
    model: Any,
    processor: Any,
    chats: Sequence[dict[str, Any]],
    seeds: Sequence[Sequence[int | None]],
    max_new_tokens: int = 256,
    max_length: int = 2048,
    date_string: str = "26 Jul 2024",
    temperature: float = 1.0,
    top_p: float = 1.0,
    on_times: OnTimes | None = None,
) -> list[list[str]]:
    """Several answers to the last user turn of each chat, all in one batch; an image is encoded once.

    Args:
        model: A Mllama, with or without adapters.
        processor: Its processor.
        chats: What the collator takes, one batch of them.
        seeds: For each chat as many as it is to have answers, equally many for all: None for the greedy one, a seed
            for one that is drawn. A draw depends on its seed, not on the batch that it stands in.
        temperature: Of the draws, above 0.
        top_p: Of the draws, in (0, 1].
        on_times: Told how long the batch took; on a GPU that waits for it.

    Returns:
        For each chat its answers, in the order of the seeds, without special tokens.
    """
    model.eval()
    num = len(seeds[0])
    batch = MllamaCollator(processor, max_length, date_string=date_string, for_generation=True)(chats)
    batch = {name: tensor.to(model.device).repeat_interleave(num, dim=0) for name, tensor in batch.items()}
    sampler = RowSampler([seed for own in seeds for seed in own], temperature, top_p)
    texts = _write(model, processor, batch, max_new_tokens, sampler=sampler, on_times=on_times)
    return [texts[i : i + num] for i in range(0, len(texts), num)]


def _write(
    model: Any,
    processor: Any,
    batch: dict[str, Tensor],
    max_new_tokens: int,
    in_step: bool = False,
    sampler: RowSampler | None = None,
    on_times: OnTimes | None = None,
) -> list[str]:
    timer = _FirstToken() if on_times is not None else None
    start = _now(batch["input_ids"].device) if timer else 0.0
    # The checkpoint's own generation config samples; a score must not depend on luck.
    output = model.generate(
        **batch,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        synced_gpus=in_step,
        logits_processor=[each for each in (timer, sampler) if each is not None],
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    new = output[:, batch["input_ids"].shape[1] :]
    if timer and timer.at is not None:
        on_times(timer.at - start, _now(new.device) - timer.at, len(new), new.shape[1])
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


class _FirstToken(LogitsProcessor):
    """Looks at the clock when the first logits are there, and changes none."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.at is None:
            self.at = _now(scores.device)
        return scores


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def likelihoods(
    model: Any,
    processor: Any,
    chats: Sequence[dict[str, Any]],
    batch_size: int = 8,
    max_length: int = 2048,
    date_string: str = "26 Jul 2024",
    progress: str | None = "likelihoods",
) -> tuple[list[float], list[int]]:
    """How well each chat's answer is foreseen: its negative log likelihood, the end of turn included.

    Args:
        model: A Mllama, with or without adapters.
        processor: Its processor.
        chats: What the collator takes, with the assistant's words.
        batch_size: Chats at once.
        max_length: Tokens of a chat at most, its answer included.
        date_string: As in training.
        progress: What a bar says; none is shown where it is None.

    Returns:
        For each chat the sum over the assistant's tokens, in nats (0 is best), and how many tokens these are.
    """
    model.eval()
    mllama = model.get_base_model() if hasattr(model, "get_base_model") else model
    collator = MllamaCollator(processor, max_length, date_string=date_string)
    sums: list[float] = []
    counts: list[int] = []
    for rows in _batches(chats, batch_size, progress or "", progress is not None):
        batch = {name: tensor.to(model.device) for name, tensor in collator(rows).items()}
        targets = batch.pop("labels")[:, 1:]
        hidden = mllama.model(**batch, use_cache=False).last_hidden_state[:, :-1]
        scored = targets != IGNORED
        # Only the labelled positions go through the head: whole-vocabulary scores of a batch would not fit.
        logits = mllama.lm_head(hidden[scored]).float()
        losses = F.cross_entropy(logits, targets[scored], reduction="none").cpu().double()
        owners = scored.nonzero()[:, 0].cpu()
        sums += torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owners, losses).tolist()
        counts += scored.sum(dim=1).tolist()
    return sums, counts


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
    sums, counts = likelihoods(model, processor, chats, batch_size, max_length, date_string, "perplexity")
    num_tokens = sum(counts)
    return {"perplexity": math.exp(sum(sums) / num_tokens) if num_tokens else math.nan, "num_tokens": num_tokens}


def _batches(
    chats: Sequence[dict[str, Any]], batch_size: int, what: str, show: bool = True
) -> Iterator[list[dict[str, Any]]]:
    with tqdm(total=len(chats), desc=what, unit="chat", leave=False, disable=not show) as progress:
        for start in range(0, len(chats), batch_size):
            rows = [chats[i] for i in range(start, min(start + batch_size, len(chats)))]
            yield rows
            progress.update(len(rows))

"""Samples each row of a batch by its own generator: what is drawn does not depend on what else is in the batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


class RowSampler(LogitsProcessor):
    """Turns the greedy choice of `generate` into a draw, row by row.

    The largest of logits plus Gumbel noise is a draw from their softmax (Gumbel 1954; Maddison et al. 2014,
    arXiv:1411.0030). So greedy and sampled rows stand in one batch, and a row is drawn alike in any batch.
    """

    def __init__(self, seeds: Sequence[int | None], temperature: float = 1.0, top_p: float = 1.0):
        """
        Args:
            seeds: For each row, in [0, 2**63); None leaves it greedy.
            temperature: Logits are divided by it; above 0.
            top_p: Only the most probable tokens that together have this share are drawn (Holtzman et al. 2020,
                arXiv:1904.09751), in (0, 1].
        """
        self._seeds, self._temperature, self._top_p = list(seeds), temperature, top_p
        self._drawn = [i for i, seed in enumerate(self._seeds) if seed is not None]
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(B, V)` logits, noisy in the rows that are drawn."""
        if not self._drawn:
            return scores
        if not self._generators:
            self._generators = [torch.Generator(scores.device).manual_seed(self._seeds[i]) for i in self._drawn]
        logits = scores[self._drawn].float() / self._temperature
        if self._top_p < 1:
            logits = _without_tail(logits, self._top_p)
        noise = torch.empty_like(logits)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        scores = scores.float().clone()
        scores[self._drawn] = logits - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
        return scores


def _without_tail(logits: Tensor, top_p: float) -> Tensor:
    ordered, places = logits.sort(dim=-1, descending=True)
    shares = ordered.softmax(dim=-1)
    beyond = shares.cumsum(dim=-1) - shares >= top_p  # the first is always kept
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, places, beyond), -torch.inf)

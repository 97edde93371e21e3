"""Whether the probability that a text belongs to an image is honest, as trained and with a refitted temperature."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from medfinetune.evaluation.calibration import fit_match, match_figures
from medfinetune.evaluation.embedded import EmbeddedSplit

_NUM_TRIES = 20


def matched_and_unmatched(
    image_embeds: Tensor, text_embeds: Tensor, groups: Tensor, languages: Sequence[str], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Every pair, and beside each its image with a text of another finding, so that half of the pairs match.

    The other text is drawn at random in the same language, from a pair that shares neither text nor image, label or
    patient with this one, as training counts them. A pair for which 20 draws find none goes without.

    Args:
        image_embeds: `(P, D)`, unit norm; row `i` is the image of pair `i`.
        text_embeds: `(P, D)`, unit norm.
        groups: `(P, 5)`, from `group_ids_of`.
        languages: Of each pair.
        seed: Of the draws.

    Returns:
        `(K,)`, cosines; and `(K,)`, whether the pair matches.
    """
    size, shared = len(languages), groups.numpy()
    by_language = [np.flatnonzero(np.array(languages) == language) for language in sorted(set(languages))]
    rng = np.random.default_rng(seed)
    other = np.full(size, -1)
    for _ in range(_NUM_TRIES):
        for rows in by_language:
            open_rows = rows[other[rows] < 0]
            drawn = rows[rng.integers(len(rows), size=len(open_rows))]
            # 0 is unknown; only a pair itself, of which nothing is known, must not be taken for another.
            same = (shared[open_rows] == shared[drawn]) & (shared[open_rows] != 0)
            fits = ~same.any(axis=1) & (open_rows != drawn)
            other[open_rows[fits]] = drawn[fits]
    found = np.flatnonzero(other >= 0)
    matched = (image_embeds * text_embeds).sum(dim=1).double().numpy()
    unmatched = (image_embeds[found] * text_embeds[other[found]]).sum(dim=1).double().numpy()
    return np.concatenate([matched, unmatched]), np.arange(size + len(found)) < size


def match_calibration(
    split: EmbeddedSplit,
    text_embeds: Tensor,
    scale: float,
    bias: float,
    validation: EmbeddedSplit | None = None,
    validation_text_embeds: Tensor | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`as_trained`, and `refitted` on the validation split where there is one; each with its scale and bias."""
    cosines, matched = _of_split(split, text_embeds, seed)
    result: dict[str, Any] = {"num_matched": int(matched.sum()), "num_unmatched": int((~matched).sum())}
    result["as_trained"] = match_figures(scale * cosines + bias, matched) | {"scale": scale, "bias": bias}
    if validation is not None and validation_text_embeds is not None:
        held_out = _of_split(validation, validation_text_embeds, seed)
        if not held_out[1].all():
            scale, bias = fit_match(*held_out, scale, bias)
            result["refitted"] = match_figures(scale * cosines + bias, matched) | {"scale": scale, "bias": bias}
            result["num_validation_pairs"] = len(held_out[0])
    return result


def _of_split(split: EmbeddedSplit, text_embeds: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return matched_and_unmatched(split.pair_embeds, text_embeds, split.groups, split.columns["language"], seed)

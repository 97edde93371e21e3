"""Whether the probability that a text belongs to an image is honest, as trained and with a refitted temperature."""

from typing import Any

import numpy as np
from torch import Tensor

from medfinetune.evaluation.calibration import fit_match, match_figures
from medfinetune.evaluation.embedded import EmbeddedSplit

_NUM_TRIES = 20


def matched_and_unmatched(split: EmbeddedSplit, text_embeds: Tensor, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every pair, and beside each its image with a text of another finding, so that half of the pairs match.

    The other text is drawn at random in the same language; it has other words, another image and another patient,
    and another label where there is one. A pair for which 20 draws find none goes without.

    Args:
        split: `P` pairs.
        text_embeds: `(P, D)`, unit norm.
        seed: Of the draws.

    Returns:
        `(K,)`, cosines; and `(K,)`, whether the pair matches.
    """
    columns, size = split.columns, len(split.keys)
    labels = [
        (source, label) if label else ("row", row)
        for row, (source, label) in enumerate(zip(columns["source"], columns["label"], strict=True))
    ]
    patients = [split.patients[image] or ("row", row) for row, image in enumerate(split.place)]
    same = [_codes(part) for part in (columns["text"], split.keys, labels, patients)]
    languages = _codes(columns["language"])
    by_language = {number: np.flatnonzero(languages == number) for number in set(languages.tolist())}
    rng = np.random.default_rng(seed)
    other = np.full(size, -1)
    for _ in range(_NUM_TRIES):
        for number, rows in by_language.items():
            open_rows = rows[other[rows] < 0]
            drawn = by_language[number][rng.integers(len(rows), size=len(open_rows))]
            fits = np.all([codes[open_rows] != codes[drawn] for codes in same], axis=0)
            other[open_rows[fits]] = drawn[fits]
    found = np.flatnonzero(other >= 0)
    images = split.pair_embeds
    matched = (images * text_embeds).sum(dim=1).double().numpy()
    unmatched = (images[found] * text_embeds[other[found]]).sum(dim=1).double().numpy()
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
    cosines, matched = matched_and_unmatched(split, text_embeds, seed)
    result: dict[str, Any] = {"num_matched": int(matched.sum()), "num_unmatched": int((~matched).sum())}
    result["as_trained"] = match_figures(scale * cosines + bias, matched) | {"scale": scale, "bias": bias}
    if validation is not None and validation_text_embeds is not None:
        held_out = matched_and_unmatched(validation, validation_text_embeds, seed)
        if not held_out[1].all():
            scale, bias = fit_match(*held_out, scale, bias)
            result["refitted"] = match_figures(scale * cosines + bias, matched) | {"scale": scale, "bias": bias}
            result["num_validation_pairs"] = len(held_out[0])
    return result


def _codes(values: list[Any]) -> np.ndarray:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values])

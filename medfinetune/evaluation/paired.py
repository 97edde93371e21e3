"""Differences between two systems that were asked about the same cases."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medfinetune.errors import InputError
from medfinetune.evaluation.bootstrap import Bootstrap
from medfinetune.evaluation.case_statistics import CaseStatistics

OWN = "own"
"""The condition whose texts are the system's: each case with its own image and its own evidence."""


def paired_differences(
    bootstrap: Bootstrap,
    one: Mapping[str, CaseStatistics],
    other: Mapping[str, CaseStatistics],
    rows: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:
    """One system's figures minus another's, on the same resamples of the same cases.

    What is hard about a case is hard for both: a paired interval is narrower than the two intervals side by side, and
    says what those cannot.

    Args:
        bootstrap: Of the cases.
        one: Figure -> its statistics, of all cases.
        other: Likewise, of the same cases in the same order. A figure that either lacks is left out.
        rows: The cases that are compared; all where left out.

    Returns:
        Figure -> `difference`; `difference_ci`, its percentile interval; `p_value`, from `two_sided_p`; `num_cases`.
    """
    names = [name for name in one if name in other]
    values = (bootstrap.figures([system[name] for name in names], rows) for system in (one, other))
    enough = bootstrap.num_clusters_of(rows) > 1
    result = {}
    for name, of_one, of_other in zip(names, *values, strict=True):
        first, second = one[name].figure(rows), other[name].figure(rows)
        if first is None or second is None:
            continue
        differences = of_one - of_other
        result[name] = {
            "difference": first - second,
            "difference_ci": finite_limits(bootstrap.interval(differences)) if enough else None,
            "p_value": two_sided_p(differences) if enough else None,
            "num_cases": one[name].num_cases(rows),
        }
    return result


def two_sided_p(differences: np.ndarray) -> float | None:
    """Twice the smaller share of resamples in which the difference is at most, or at least, 0; at most 1.

    It is the level at which the percentile interval just reaches 0 (Efron & Tibshirani 1993, chapters 13 and 15), so
    that `p < 0.05` and a 95% interval without 0 say the same. One resample is added to count and total (Davison &
    Hinkley 1997, chapter 4): `R` resamples never give less than `2 / (R + 1)`.

    Args:
        differences: `(R,)`; nan is left out.

    Returns:
        In (0, 1]; None where the difference exists in no resample.
    """
    known = differences[np.isfinite(differences)]
    if not len(known):
        return None
    smaller = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (1 + smaller) / (1 + len(known))))


def finite_limits(limits: Sequence[float]) -> list[float] | None:
    """An interval as JSON can hold it; None where it does not exist."""
    return [float(limit) for limit in limits] if np.isfinite(limits).all() else None


def read_texts(predictions_file: str | Path, ids: Sequence[str], column: str = "generated") -> list[str]:
    """Another run's texts for the same cases, in the order that is asked for.

    Args:
        predictions_file: A `predictions.jsonl` that an evaluation wrote.
        ids: Of the cases; the file may hold more.
        column: That holds the texts.

    Raises:
        InputError: The file is missing or no JSON lines, lacks a case or the column, or holds a case twice.
    """
    path = Path(predictions_file)
    if not path.is_file():
        raise InputError(f"{path}: no such file; an evaluation writes it to its output_dir as predictions.jsonl")
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is no JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get(column), str) or "id" not in row:
                raise InputError(f"{path}: line {number} has no id, or no text in {column}")
            if row["id"] in texts:
                raise InputError(f"{path}: line {number}: the case {row['id']} stands there twice")
            texts[row["id"]] = row[column]
    missing = [identity for identity in ids if identity not in texts]
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing)} of {len(ids)} cases, e.g. {missing[0]}; both runs must be of the same split"
        )
    return [texts[identity] for identity in ids]

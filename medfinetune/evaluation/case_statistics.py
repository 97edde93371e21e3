"""Figures of many cases, as sums over the cases: what a resample needs, and all that it needs.

A figure of a set is a formula on sums: a mean is a sum over a count, micro F1 twice the right over the stated and the
true, BLEU a formula on counts of n-grams. So the figure of each of a thousand resamples costs one matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medfinetune.errors import InputError
from medfinetune.evaluation.text import bleu_metric, chrf_metric

_CHRF_BETA = 2


@dataclass(frozen=True)
class CaseStatistics:
    """What each case adds to a figure.

    Attributes:
        values: `(N, K)`, float64; a row of zeros is a case that the figure is not of.
        counted: `(N,)`, bool: whether the figure is of the case.
        formula: Sums over cases, `(R, K)`, to figures, `(R,)`; nan where there is none.
    """

    values: np.ndarray
    counted: np.ndarray
    formula: Callable[[np.ndarray], np.ndarray]

    def figure(self, rows: Sequence[int] | None = None) -> float | None:
        """Of all cases, or of some; None where it does not exist."""
        chosen = slice(None) if rows is None else np.asarray(rows, dtype=np.int64)
        if not self.counted[chosen].any():
            return None
        value = float(self.formula(self.values[chosen].sum(axis=0, keepdims=True))[0])
        return value if np.isfinite(value) else None

    def of_each(self) -> np.ndarray:
        """`(N,)`: the figure of each case by itself; nan where it does not exist."""
        return np.where(self.counted, self.formula(self.values), np.nan)

    def num_cases(self, rows: Sequence[int] | None = None) -> int:
        """How many cases the figure is of."""
        return int(self.counted[slice(None) if rows is None else np.asarray(rows, dtype=np.int64)].sum())


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> CaseStatistics:
    """`sum(numerators) / sum(denominators)`, e.g. micro F1 with twice the right over the stated and the true.

    Args:
        numerators: `(N,)`; nan leaves the case out.
        denominators: `(N,)`, at least 0. A case with 0 of both adds nothing, and has no figure of its own.
    """
    values = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=1)
    known = np.isfinite(values).all(axis=1)
    return CaseStatistics(np.where(known[:, None], values, 0.0), known & (values[:, 1] != 0), _ratio)


def mean_of_cases(values: Sequence[float]) -> CaseStatistics:
    """The mean over cases, `(N,)`; a case of nan is left out."""
    return ratio_of_sums(values, np.ones(len(values)))


def exp_of_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> CaseStatistics:
    """`exp(sum / sum)`, e.g. perplexity from summed negative log likelihoods, in nats, and counts of tokens."""
    ratio = ratio_of_sums(numerators, denominators)
    return CaseStatistics(ratio.values, ratio.counted, lambda sums: np.exp(_ratio(sums)))


def bleu_statistics(
    predictions: Sequence[str], references: Sequence[str], languages: Sequence[str], language: str
) -> CaseStatistics:
    """`text.bleu` of the cases in one language: lengths and n-gram counts, as sacrebleu sums them.

    Args:
        languages: Of each case.
        language: The cases in any other are left out.
    """
    return _of_language(bleu_metric(language), bleu_scores, 10, predictions, references, languages, language)


def chrf_statistics(
    predictions: Sequence[str], references: Sequence[str], languages: Sequence[str], language: str
) -> CaseStatistics:
    """`text.chrf` of the cases in one language; arguments as for `bleu_statistics`."""
    return _of_language(chrf_metric(), chrf_scores, 18, predictions, references, languages, language)


def bleu_scores(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU of many corpora at once, equal to sacrebleu's with exponential smoothing and effective order.

    Args:
        sums: `(R, 10)`: length of the predictions and of the references in tokens; matching n-grams for n of 1 to 4;
            n-grams of the predictions for n of 1 to 4.

    Returns:
        `(R,)`, in [0, 100].
    """
    length, wanted, matched, stated = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    order = (stated > 0).sum(axis=1)
    # The k-th order without a match counts 1 / 2^k of a match (mteval-v13a).
    missed = (matched == 0) & (stated > 0)
    smoothed = np.where(missed, 0.5 ** missed.cumsum(axis=1), matched)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(stated > 0, np.log(100 * smoothed / stated), 0.0)
        brevity = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        scores = brevity * np.exp(logs.sum(axis=1) / order)
    return np.where(matched.any(axis=1), scores, 0.0)


def chrf_scores(sums: np.ndarray) -> np.ndarray:
    """Corpus chrF of many corpora at once, equal to sacrebleu's.

    Args:
        sums: `(R, 18)`: for each n of 1 to 6 the character n-grams of the predictions, of the references, and in both.

    Returns:
        `(R,)`, in [0, 100].
    """
    stated, true, matched = (sums[:, i::3] for i in range(3))
    known = (stated > 0) & (true > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(known, matched / stated, 0.0).sum(axis=1) / known.sum(axis=1)
        recall = np.where(known, matched / true, 0.0).sum(axis=1) / known.sum(axis=1)
        scores = (1 + _CHRF_BETA**2) * precision * recall / (_CHRF_BETA**2 * precision + recall)
    return np.where(matched.any(axis=1), 100 * scores, 0.0)


def _ratio(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def _of_language(
    metric: Any,
    formula: Callable[[np.ndarray], np.ndarray],
    width: int,
    predictions: Sequence[str],
    references: Sequence[str],
    languages: Sequence[str],
    language: str,
) -> CaseStatistics:
    if not len(predictions) == len(references) == len(languages):
        raise InputError(f"{len(predictions)} predictions, {len(references)} references, {len(languages)} languages")
    rows = [i for i, spoken in enumerate(languages) if spoken == language]
    values, counted = np.zeros((len(languages), width)), np.zeros(len(languages), dtype=bool)
    if rows:
        # sacrebleu sums these itself for its own resampling; it has no public name for them.
        values[rows] = metric._extract_corpus_statistics(
            [predictions[i] for i in rows], [[references[i] for i in rows]]
        )
        counted[rows] = True
    return CaseStatistics(values, counted, formula)

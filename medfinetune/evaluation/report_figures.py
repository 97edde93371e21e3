"""The figures of one set of texts about some cases, each as what a case adds to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medfinetune.evaluation.answers import llava_med_closed, llava_med_recall, lmms_eval_correct
from medfinetune.evaluation.case_statistics import (
    CaseStatistics,
    bleu_statistics,
    chrf_statistics,
    exp_of_ratio,
    mean_of_cases,
    ratio_of_sums,
)
from medfinetune.evaluation.finding_f1 import Counts, FindingCounts
from medfinetune.evaluation.report_cases import ReportCase
from medfinetune.evaluation.text import exact_match, rouge_l, token_f1

CountFindings = Callable[[str, str], FindingCounts]
"""Of a prediction and its reference."""


@dataclass(frozen=True)
class FigureKind:
    """How a figure is told."""

    words: str
    highest: float | None = 1.0
    higher_is_better: bool = True


KINDS = {
    "finding_f1": FigureKind("finding F1"),
    "finding_f1_present": FigureKind("finding F1, absences left out"),
    "finding_precision": FigureKind("finding precision"),
    "finding_recall": FigureKind("finding recall"),
    "bleu": FigureKind("BLEU", 100.0),
    "chrf": FigureKind("chrF", 100.0),
    "rouge_l": FigureKind("ROUGE-L"),
    "token_f1": FigureKind("token F1"),
    "exact_match": FigureKind("exact match"),
    "llava_med_closed_accuracy": FigureKind("closed accuracy (LLaVA-Med)"),
    "llava_med_open_recall": FigureKind("open recall (LLaVA-Med)"),
    "lmms_eval_closed_accuracy": FigureKind("closed accuracy (lmms-eval)"),
    "lmms_eval_open_accuracy": FigureKind("open accuracy (lmms-eval)"),
    "lmms_eval_accuracy": FigureKind("accuracy (lmms-eval)"),
    "encoder_similarity": FigureKind("similarity by the encoder"),
    "perplexity": FigureKind("perplexity", None, False),
}
"""Every figure of a report; BLEU and chrF have their language behind them, as in `bleu_zh`."""


def kind_of(name: str) -> FigureKind:
    """How a figure is told, with its language where it is of one."""
    if name in KINDS:
        return KINDS[name]
    stem, _, language = name.partition("_")
    kind = KINDS[stem]
    return FigureKind(f"{kind.words}, {language}", kind.highest, kind.higher_is_better)


def report_statistics(
    cases: Sequence[ReportCase],
    texts: Sequence[str],
    counts: Sequence[FindingCounts] | None = None,
    similarities: Sequence[float] | None = None,
    likelihoods: tuple[Sequence[float], Sequence[float]] | None = None,
) -> dict[str, CaseStatistics]:
    """What each case adds to each figure.

    Args:
        cases: `N`.
        texts: What was written about each.
        counts: Of each, its findings; no finding figures where left out.
        similarities: Of each, the cosine of its image and its text; none where left out.
        likelihoods: Of each, the summed negative log likelihood of its reference, in nats, and the reference's tokens.

    Returns:
        By the names of `KINDS`, in their order; those that are of no case are left out.
    """
    truths, languages = [case.reference for case in cases], [case.language for case in cases]
    found: dict[str, CaseStatistics] = {}
    if counts is not None:
        found |= finding_statistics(counts)
    for language in sorted(set(languages)):
        found[f"bleu_{language}"] = bleu_statistics(texts, truths, languages, language)
        found[f"chrf_{language}"] = chrf_statistics(texts, truths, languages, language)
    rows = list(zip(texts, truths, languages, strict=True))
    found["rouge_l"] = mean_of_cases([rouge_l(text, truth) for text, truth, _ in rows])
    found["token_f1"] = mean_of_cases([token_f1(*row) for row in rows])
    found["exact_match"] = mean_of_cases([exact_match(*row) for row in rows])
    found |= _answer_statistics(cases, texts)
    if similarities is not None:
        found["encoder_similarity"] = mean_of_cases(similarities)
    if likelihoods is not None:
        found["perplexity"] = exp_of_ratio(*likelihoods)
    order = list(KINDS)
    stems = {name: order.index(name if name in KINDS else name.partition("_")[0]) for name in found}
    return {name: found[name] for name in sorted(found, key=stems.__getitem__) if found[name].counted.any()}


def finding_statistics(counts: Sequence[FindingCounts], finding: str | None = None) -> dict[str, CaseStatistics]:
    """Finding F1, which is micro over statements, its precision and recall, and F1 of what is not absent.

    Args:
        counts: Of each case.
        finding: Of this one alone; of all together where left out.
    """
    nothing = Counts()
    one = [case.by_finding.get(finding, nothing) for case in counts] if finding is not None else counts
    right, stated, true = _columns(one)
    result = {
        "finding_f1": ratio_of_sums(2 * right, stated + true),
        "finding_precision": ratio_of_sums(right, stated),
        "finding_recall": ratio_of_sums(right, true),
    }
    if finding is None:
        right, stated, true = _columns([case.present for case in counts])
        result["finding_f1_present"] = ratio_of_sums(2 * right, stated + true)
    return result


def count_all(
    count_findings: CountFindings, texts: Sequence[str], truths: Sequence[str], seen: dict[tuple[str, str], Any]
) -> list[Any]:
    """The findings of each case; a pair of texts that was read before is not read again.

    Args:
        seen: What was read so far; it grows.
    """
    pairs = list(zip(texts, truths, strict=True))
    for pair in pairs:
        if pair not in seen:
            seen[pair] = count_findings(*pair)
    return [seen[pair] for pair in pairs]


def _columns(counts: Sequence[Any]) -> list[np.ndarray]:
    return [np.array([getattr(one, name) for one in counts], np.float64) for name in Counts._fields]


def _answer_statistics(cases: Sequence[ReportCase], texts: Sequence[str]) -> Mapping[str, CaseStatistics]:
    types = [case.answer_type for case in cases]

    def mean(judge: Callable[[str, str, str], float], *wanted: str) -> CaseStatistics:
        return mean_of_cases(
            [
                float(judge(text, case.reference, case.language)) if kind in wanted else np.nan
                for case, text, kind in zip(cases, texts, types, strict=True)
            ]
        )

    def lmms_eval(text: str, truth: str, language: str) -> bool:
        return lmms_eval_correct(text, truth)

    return {
        "llava_med_closed_accuracy": mean(lambda text, truth, _: llava_med_closed(text, truth), "closed"),
        "llava_med_open_recall": mean(llava_med_recall, "open"),
        "lmms_eval_closed_accuracy": mean(lmms_eval, "closed"),
        "lmms_eval_open_accuracy": mean(lmms_eval, "open"),
        "lmms_eval_accuracy": mean(lmms_eval, "closed", "open"),
    }

"""Finding accuracy: of all findings of the references, the share that the predictions state rightly."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from medfinetune.errors import InputError
from medfinetune.evaluation.findings import CONTRADICTORY, read_findings
from medfinetune.evaluation.lexicon import Lexicon
from medfinetune.evaluation.text import languages_of

Comparison = dict[str, dict[str, Any]]
"""Finding -> `reference` (value), `stated` (value, None where left out) and `right`."""


def compare_findings(prediction: str, reference: str, lexicon: Lexicon) -> Comparison:
    """Holds each finding of the reference against what the prediction states; one left out is not right."""
    stated = read_findings(prediction, lexicon)
    return {
        name: {"reference": value, "stated": stated.get(name), "right": stated.get(name) == value}
        for name, value in read_findings(reference, lexicon).items()
        # A reference that contradicts itself tells no truth to measure against.
        if value != CONTRADICTORY
    }


def finding_accuracy(
    predictions: Sequence[str],
    references: Sequence[str],
    lexicon: Lexicon,
    languages: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """The share of the references' findings that the predictions state rightly.

    Args:
        predictions: Texts to judge; each belongs to the reference at its place.
        references: Texts that are taken for true.
        languages: The language of each reference, or one for all; gives the figures by language too.

    Returns:
        `finding_accuracy` in [0, 1], None where no reference states a finding; `num_findings` and `num_right`, its
        denominator and numerator; `num_references_without_findings`; `by_finding` and, if asked for, `by_language`
        with the same figures.

    Raises:
        InputError: The lists differ in length.
    """
    if len(predictions) != len(references):
        raise InputError(f"finding accuracy: {len(predictions)} predictions for {len(references)} references")
    languages = None if languages is None else languages_of("finding accuracy", languages, len(references))
    comparisons = [
        compare_findings(prediction, reference, lexicon)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return count_right(comparisons, lexicon, languages)


def count_right(
    comparisons: Sequence[Comparison], lexicon: Lexicon, languages: Sequence[str] | None = None
) -> dict[str, Any]:
    """The figures of `finding_accuracy` from comparisons that are already made."""
    result = _share(finding["right"] for comparison in comparisons for finding in comparison.values())
    result["num_references_without_findings"] = sum(not comparison for comparison in comparisons)
    result["by_finding"] = {
        name: _share(comparison[name]["right"] for comparison in comparisons if name in comparison)
        for name in lexicon.findings
    }
    if languages is not None:
        result["by_language"] = {
            language: _share(
                finding["right"]
                for comparison, spoken in zip(comparisons, languages, strict=True)
                if spoken == language
                for finding in comparison.values()
            )
            for language in sorted(set(languages))
        }
    return result


def majority_accuracy(
    references: Iterable[str], lexicon: Lexicon, sources: Iterable[str] | None = None
) -> dict[str, Any]:
    """The floor: finding accuracy of always stating each finding's most common value.

    Args:
        references: Texts that are taken for true.
        sources: Texts that the most common values are counted in, e.g. of the training split; the references
            themselves where left out, which makes the floor as high as it can be.

    Returns:
        `finding_accuracy`, `num_findings` and `num_right`, and `values`, the value stated for each finding.
    """
    truths = [_true_findings(reference, lexicon) for reference in references]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for findings in truths if sources is None else [_true_findings(source, lexicon) for source in sources]:
        for name, value in findings.items():
            counts[name][value] += 1
    values = {name: min(counts[name], key=lambda value: (-counts[name][value], value)) for name in counts}
    result = _share(values.get(name) == value for findings in truths for name, value in findings.items())
    return result | {"values": values}


def _true_findings(text: str, lexicon: Lexicon) -> dict[str, str]:
    return {name: value for name, value in read_findings(text, lexicon).items() if value != CONTRADICTORY}


def _share(outcomes: Iterable[bool]) -> dict[str, Any]:
    outcomes = list(outcomes)
    share = sum(outcomes) / len(outcomes) if outcomes else None
    return {"finding_accuracy": share, "num_findings": len(outcomes), "num_right": sum(outcomes)}

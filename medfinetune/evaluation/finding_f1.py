"""Finding F1: how far two texts state the same, by the statements that a lexicon reads in both.

Related measures, all of English chest reports: CheXpert's labeler (Irvin et al. 2019, arXiv:1901.07031) reads 14
findings as present, absent or uncertain by rules, as is done here; CheXbert (Smit et al. 2020, arXiv:2004.09167) has
learned to label so, and F1 over its labels is usually taken of present findings; RadGraph F1 (Jain et al. 2021,
arXiv:2106.14463; Yu et al. 2023, https://doi.org/10.1016/j.patter.2023.100802) compares entities and relations that a
model finds. The first two know no side and no severity. Figures of this measure cannot be set beside theirs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from medfinetune.errors import InputError
from medfinetune.evaluation.findings import CONTRADICTORY, Statement, read_statements
from medfinetune.evaluation.lexicon import Lexicon
from medfinetune.evaluation.text import languages_of


class Counts(NamedTuple):
    """Numbers of statements; sums of them over cases give F1."""

    num_right: int = 0
    num_stated: int = 0
    num_true: int = 0

    @property
    def f1(self) -> float | None:
        """In [0, 1]; None where neither text states anything."""
        return _ratio(2 * self.num_right, self.num_stated + self.num_true)


@dataclass(frozen=True)
class FindingCounts:
    """What finding F1 counts of one case.

    Attributes:
        num_right: Statements that stand in both texts.
        num_stated: Statements of the prediction.
        num_true: Statements of the reference.
        by_finding: The same for each finding that either text states.
        present: The same, what is absent left out.
    """

    num_right: int
    num_stated: int
    num_true: int
    by_finding: dict[str, Counts]
    present: Counts


def finding_counts(prediction: str, reference: str, lexicon: Lexicon) -> FindingCounts:
    """Counts the statements of a prediction that stand in its reference.

    A statement is right where the reference holds the same: the same finding, value or presence, side and severity.
    That a finding is absent is a statement like any other. A finding for which the reference contradicts itself tells
    no truth and is left out on both sides; one for which the prediction does is stated once and never right.
    """
    return counts_of(read_statements(prediction, lexicon), read_statements(reference, lexicon))


def counts_of(stated: Iterable[Statement], true: Iterable[Statement]) -> FindingCounts:
    """`finding_counts` of texts that are read already."""
    truth = set(true)
    untold = {statement.finding for statement in truth if statement.presence == CONTRADICTORY}
    truth = {statement for statement in truth if statement.finding not in untold}
    said = {statement for statement in stated if statement.finding not in untold}
    names = sorted({statement.finding for statement in truth | said})
    return FindingCounts(
        *_count(said, truth),
        by_finding={
            name: _count({s for s in said if s.finding == name}, {s for s in truth if s.finding == name})
            for name in names
        },
        present=_count({s for s in said if s.presence != "absent"}, {s for s in truth if s.presence != "absent"}),
    )


def finding_f1(
    predictions: Sequence[str],
    references: Sequence[str],
    lexicon: Lexicon,
    languages: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Micro F1 over all statements of all cases.

    Args:
        predictions: Texts to judge; each belongs to the reference at its place.
        references: Texts that are taken for true.
        languages: The language of each reference, or one for all; gives the figures by language too.

    Returns:
        The figures of `f1_of_counts`.

    Raises:
        InputError: The lists differ in length.
    """
    if len(predictions) != len(references):
        raise InputError(f"finding F1: {len(predictions)} predictions for {len(references)} references")
    languages = None if languages is None else languages_of("finding F1", languages, len(references))
    counts = [finding_counts(*texts, lexicon) for texts in zip(predictions, references, strict=True)]
    return f1_of_counts(counts, lexicon, languages)


def f1_of_counts(
    counts: Sequence[FindingCounts], lexicon: Lexicon, languages: Sequence[str] | None = None
) -> dict[str, Any]:
    """The figures of `finding_f1` from the counts of the cases.

    Returns:
        `finding_f1` in [0, 1] with `precision` and `recall`, each None where it would divide by 0; their counts
        `num_right`, `num_stated` and `num_true`; `finding_f1_present`, where statements that something is absent are
        left out; `num_references_without_findings`, those that state nothing or only contradict themselves;
        `by_finding` and, if asked for, `by_language` with the same figures and counts.
    """
    result = _figures(Counts(case.num_right, case.num_stated, case.num_true) for case in counts)
    result["finding_f1_present"] = _total(case.present for case in counts).f1
    result["num_references_without_findings"] = sum(not case.num_true for case in counts)
    result["by_finding"] = {
        name: _figures(case.by_finding[name] for case in counts if name in case.by_finding) for name in lexicon.findings
    }
    if languages is not None:
        result["by_language"] = {}
        for language in sorted(set(languages)):
            chosen = [case for case, spoken in zip(counts, languages, strict=True) if spoken == language]
            result["by_language"][language] = _figures(
                Counts(case.num_right, case.num_stated, case.num_true) for case in chosen
            ) | {"finding_f1_present": _total(case.present for case in chosen).f1}
    return result


def _count(said: set[Statement], truth: set[Statement]) -> Counts:
    return Counts(len(said & truth), len(said), len(truth))


def _total(counts: Iterable[Counts]) -> Counts:
    return Counts(*(sum(numbers) for numbers in zip(Counts(), *counts, strict=True)))


def _figures(counts: Iterable[Counts]) -> dict[str, Any]:
    total = _total(counts)
    return {
        "finding_f1": total.f1,
        "precision": _ratio(total.num_right, total.num_stated),
        "recall": _ratio(total.num_right, total.num_true),
        **total._asdict(),
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None

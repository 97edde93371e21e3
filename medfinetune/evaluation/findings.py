"""Which findings a text states, in English or Chinese.

BLEU hardly notices a lost "no", a swapped side or another grade. A lexicon does: it reads what both texts state, and
the statements are compared.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from medfinetune.evaluation.clauses import Sentence, read_sentences
from medfinetune.evaluation.lexicon import Finding, Lexicon
from medfinetune.evaluation.told import Told, told_in

CONTRADICTORY = "contradictory"
"""The value of a finding for which a text states two values: it is never right."""

Presence = Literal["present", "absent", "uncertain", "contradictory"]


@dataclass(frozen=True)
class Statement:
    """One thing that a text states.

    Attributes:
        finding: Its name in the lexicon.
        presence: A finding that is contradictory has one such statement and no other.
        value: For a finding of several values (a grade, a colour), which of them; None for one that is there or not.
        side: `left`, `right`, `both`, or None where the text tells none.
        severity: As the lexicons' general words have it (`mild` ... `severe`), or None; never of what is absent.
    """

    finding: str
    presence: Presence
    value: str | None = None
    side: str | None = None
    severity: str | None = None

    def __str__(self) -> str:
        name = self.finding if self.value is None else f"{self.finding}={self.value}"
        return " ".join(filter(None, (name, self.presence, self.side, self.severity)))


def read_statements(text: str, lexicon: Lexicon) -> list[Statement]:
    """Reads what a text states, whatever its language.

    What is said twice is one statement: sides are gathered (`left` and `right` alike are `both`), a statement without
    a side yields to one with it, what is uncertain here and certain there is certain, and of two severities the last
    one counts. Two values for one finding, or a finding both there and not there, are contradictory.

    Returns:
        The statements, each once, in the order of the lexicon's findings.
    """
    told: dict[str, list[Told]] = {}
    for sentence in read_sentences(text, lexicon):
        if sentence.is_question and not lexicon.questions_count:
            continue
        for name in sentence.findings():
            told.setdefault(name, []).extend(_told(lexicon.findings[name], sentence, lexicon))
    return [
        statement for name in lexicon.findings if told.get(name) for statement in _settle(lexicon, name, told[name])
    ]


def read_findings(text: str, lexicon: Lexicon) -> dict[str, str]:
    """Reads the findings that a text states as one value each; a finding that is uncertain counts as stated.

    Returns:
        Finding -> value, for those that are stated. A sided finding is `left`, `right`, `both`, its absent value, or
        its present one where no side is told. What is only denied reads `not left`, and a finding that is given two
        values reads `contradictory`.
    """
    by_finding: dict[str, list[Statement]] = {}
    for statement in read_statements(text, lexicon):
        by_finding.setdefault(statement.finding, []).append(statement)
    return {name: _flat(lexicon.findings[name], statements) for name, statements in by_finding.items()}


def _told(finding: Finding, sentence: Sentence, lexicon: Lexicon) -> Iterator[Told]:
    for told in told_in(finding, sentence, lexicon):
        yield told._replace(presence="uncertain") if sentence.is_question and told.presence == "present" else told


def _settle(lexicon: Lexicon, name: str, told: list[Told]) -> Iterator[Statement]:
    finding = lexicon.findings[name]
    contradictory = Statement(name, CONTRADICTORY)
    settled: list[Statement] = []
    for value in dict.fromkeys(item.value for item in told):
        sides = _sides([item for item in told if item.value == value])
        if sides is None:
            yield contradictory
            return
        settled += [Statement(name, *item.key(finding)) for item in sides]
    if finding.opposites or finding.several or not _clash(settled):
        yield from settled if finding.opposites or finding.several else _most_told(settled)
    else:
        yield contradictory


def _sides(told: list[Told]) -> list[Told] | None:
    """One statement for each side, of all that is told of one value; None where they contradict each other."""
    by_side: dict[str | None, Told] = {}
    for item in told:
        for side in ("left", "right") if item.side == "both" else (item.side,):
            before = by_side.get(side)
            both = None if before is None else {before.presence, item.presence}
            if both == {"present", "absent"}:
                return None
            # Certain presence goes before doubt, and doubt before absence.
            presence = min([item.presence, *(both or ())], key=("present", "uncertain", "absent").index)
            severity = item.severity or (before.severity if before else None)
            by_side[side] = item._replace(side=side, presence=presence, severity=severity)
    return _merge(by_side)


def _merge(by_side: dict[str | None, Told]) -> list[Told] | None:
    unsided = by_side.pop(None, None)
    if unsided is not None:
        presences = {item.presence for item in by_side.values()}
        if unsided.presence == "absent":
            # Absent anywhere holds for either side.
            return None if "present" in presences else [unsided] if "uncertain" not in presences else _pair(by_side)
        if presences - {"absent"}:
            # "Left effusion. The effusion is small." tells of one.
            return _pair({side: _with_severity(item, unsided.severity) for side, item in by_side.items()})
        if len(by_side) == 2:
            return None
        return [unsided, *by_side.values()]
    return _pair(by_side)


def _with_severity(item: Told, severity: str | None) -> Told:
    return item if item.presence == "absent" else item._replace(severity=item.severity or severity)


def _pair(by_side: dict[str | None, Told]) -> list[Told]:
    left, right = by_side.get("left"), by_side.get("right")
    if left and right and left._replace(side="right") == right:
        return [left._replace(side=None if left.presence == "absent" else "both")]
    return [item for item in (left, right) if item]


def _clash(statements: Iterable[Statement]) -> bool:
    """Whether two values hold for one side, or one that holds is denied; a value without a side is of both."""
    held = [(item.value, item.side) for item in statements if item.presence != "absent"]
    return any(
        first != second and (one == other or None in (one, other) or "both" in (one, other))
        for first, one in held
        for second, other in held
    )


def _most_told(statements: list[Statement]) -> list[Statement]:
    """The values that hold; only where none does, those that are denied."""
    held = [item for item in statements if item.presence != "absent"]
    return held or statements


def _flat(finding: Finding, statements: list[Statement]) -> str:
    if any(item.presence == CONTRADICTORY for item in statements):
        return CONTRADICTORY
    held = [item for item in statements if item.presence != "absent"]
    if not finding.opposites:
        if not held:
            return "not " + ", ".join(sorted(str(item.value) for item in statements))
        return ", ".join(sorted(f"{item.side} {item.value}" if item.side else str(item.value) for item in held))
    sides = {item.side for item in held} - {None}
    if sides:
        return "both" if len(sides) == 2 else str(sides.pop())
    denied = sorted(item.side for item in statements if item.presence == "absent" and item.side)
    if denied:
        return "not " + ", ".join(denied)
    present = str(finding.present)
    return present if held else finding.opposites[present]

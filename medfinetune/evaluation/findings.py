"""Which findings a text states, in English or Chinese.

BLEU hardly notices a lost "no", a swapped side or another grade. A lexicon does: it reads each finding out of both
texts as one value, and the values are compared.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from medfinetune.evaluation.lexicon import Cue, Finding, Lexicon

CONTRADICTORY = "contradictory"
"""The value of a finding for which a text states two values: it is never right."""

_SENTENCE_END = re.compile(r"[;!?\n。；！？]|\.(?!\d)")
_JOINER = re.compile(r"\s*(?:or|nor|、|或|及|和|与)\s*")


@dataclass(frozen=True)
class _Mark:
    cue: Cue
    start: int
    end: int


@dataclass
class _Clause:
    text: str
    marks: list[_Mark]
    opened_by: str
    denied: bool = False

    def of(self, kind: str) -> list[_Mark]:
        return [mark for mark in self.marks if mark.cue.kind == kind]


@dataclass(frozen=True)
class _Statement:
    value: str
    holds: bool
    side: str | None


def read_findings(text: str, lexicon: Lexicon) -> dict[str, str]:
    """Reads the findings that a text states, whatever its language.

    Returns:
        Finding -> value, for those that are stated. A sided finding is `left`, `right`, `both`, its absent value, or
        its present one where no side is told. What is only denied reads `not left`, and a finding that is given two
        values reads `contradictory`.
    """
    stated: dict[str, list[_Statement]] = {}
    for sentence in _SENTENCE_END.split(unicodedata.normalize("NFKC", text).lower()):
        marks = _marks(sentence, lexicon)
        clauses = _clauses(sentence, marks)
        for name in dict.fromkeys(mark.cue.finding for mark in marks if mark.cue.kind == "finding"):
            statements = _statements(lexicon.findings[name], sentence, clauses, lexicon)
            stated.setdefault(name, []).extend(statements)
    return {name: _resolve(lexicon.findings[name], stated[name]) for name in lexicon.findings if stated.get(name)}


def _marks(sentence: str, lexicon: Lexicon) -> list[_Mark]:
    found = [_Mark(cue, match.start(), match.end()) for cue in lexicon.cues for match in cue.pattern.finditer(sentence)]
    # "not only" is no "not", and "不规则" no "规则": the longer of two nested phrases is meant.
    return sorted((mark for mark in found if not any(_inside(mark, other) for other in found)), key=lambda m: m.start)


def _inside(mark: _Mark, other: _Mark) -> bool:
    return other.start <= mark.start and mark.end <= other.end and other.end - other.start > mark.end - mark.start


def _clauses(sentence: str, marks: list[_Mark]) -> list[_Clause]:
    ends = [mark for mark in marks if mark.cue.kind in ("clause_ends", "comma")]
    starts, stops = [0, *(mark.end for mark in ends)], [*(mark.start for mark in ends), len(sentence)]
    openers = ["", *(mark.cue.kind for mark in ends)]
    clauses = [
        _Clause(sentence[start:stop], [mark for mark in marks if start <= mark.start and mark.end <= stop], opener)
        for start, stop, opener in zip(starts, stops, openers, strict=True)
    ]
    for i in range(1, len(clauses)):
        before, here = clauses[i - 1], clauses[i]
        if here.opened_by == "comma" and (before.denied or before.of("negation_before")):
            here.denied = any(clause.of("list_words") for clause in _joined_by_commas(clauses, i))
    return clauses


def _joined_by_commas(clauses: list[_Clause], start: int) -> Iterator[_Clause]:
    for clause in clauses[start:]:
        if clause.opened_by != "comma":
            return
        yield clause


def _statements(finding: Finding, sentence: str, clauses: list[_Clause], lexicon: Lexicon) -> Iterator[_Statement]:
    stating = [(i, mark) for i, clause in enumerate(clauses) for mark in clause.of("finding")]
    stating = [(i, mark) for i, mark in stating if mark.cue.finding == finding.name]
    if finding.context is not None:
        # "Heart enlarged, lungs normal": a context in the phrase's own clause goes before one elsewhere.
        near = [(i, mark) for i, mark in stating if finding.context.search(clauses[i].text)]
        stating = near or (stating if finding.context.search(sentence) else [])
    for i, mark in stating:
        holds = not _is_denied(mark, clauses[i], sentence)
        if finding.present is None:
            yield _statement(finding, mark.cue.value, holds, None)
            continue
        side = _side(mark, clauses[i], lexicon)
        lent = [] if side else list(_lent_sides(clauses, i, lexicon))
        if lent:
            for lent_side, denied in lent:
                yield _statement(finding, mark.cue.value, holds != denied, lent_side)
        else:
            yield _statement(finding, mark.cue.value, holds, side)


def _statement(finding: Finding, value: str, holds: bool, side: str | None) -> _Statement:
    if not holds and value in finding.opposites:
        return _Statement(finding.opposites[value], True, side)
    return _Statement(value, holds, side)


def _is_denied(mark: _Mark, clause: _Clause, sentence: str) -> bool:
    if clause.denied or any(cue.end <= mark.start for cue in clause.of("negation_before")):
        return True
    for cue in clause.of("negation_after"):
        phrases = [other for other in clause.of("finding") if other.end <= cue.start]
        if not phrases or any(other.start >= cue.end for other in clause.of("finding")):
            continue
        # It denies the phrase nearest to it, and those that a list joins to that one.
        denied = phrases[-1:]
        for other in reversed(phrases[:-1]):
            if _JOINER.fullmatch(sentence[other.end : denied[0].start]):
                denied.insert(0, other)
        if mark in denied:
            return True
    return False


def _side(mark: _Mark, clause: _Clause, lexicon: Lexicon) -> str | None:
    sides = clause.of("side")
    phrases = [m for m in clause.of("finding") if lexicon.findings[m.cue.finding].present is not None]
    if len(sides) == len(phrases):
        return sides[phrases.index(mark)].cue.value
    gaps = [(max(side.start - mark.end, mark.start - side.end), side.start, side.cue.value) for side in sides]
    return min(gaps)[2] if gaps else None


def _lent_sides(clauses: list[_Clause], i: int, lexicon: Lexicon) -> Iterator[tuple[str, bool]]:
    """Sides told in clauses of their own: "a fracture, not on the left but on the right", "on the left, a fracture"."""
    found = False
    for clause in clauses[i + 1 :]:
        if not _tells_only_a_side(clause, lexicon):
            break
        found = True
        yield clause.of("side")[0].cue.value, bool(clause.of("negation_before"))
    if not found and i > 0 and _tells_only_a_side(clauses[i - 1], lexicon):
        yield clauses[i - 1].of("side")[0].cue.value, bool(clauses[i - 1].of("negation_before"))


def _tells_only_a_side(clause: _Clause, lexicon: Lexicon) -> bool:
    if len(clause.of("side")) != 1 or clause.of("finding"):
        return False
    rest = clause.text
    for cue in lexicon.cues:
        if cue.kind in ("side", "negation_before"):
            rest = cue.pattern.sub(" ", rest)
    return not re.sub(r"\W", "", lexicon.fillers.sub(" ", rest))


def _resolve(finding: Finding, statements: list[_Statement]) -> str:
    if finding.present is not None:
        return _resolve_sided(finding, statements)
    held = {statement.value for statement in statements if statement.holds}
    denied = {statement.value for statement in statements if not statement.holds}
    if len(held) > 1 or held & denied:
        return CONTRADICTORY
    return held.pop() if held else _not(denied)


def _resolve_sided(finding: Finding, statements: list[_Statement]) -> str:
    present, absent = set(), set()
    for statement in statements:
        told = present if statement.value == finding.present else absent
        told.update(("left", "right") if statement.side == "both" else (statement.side,))
    sides = present - {None}
    if present and (None in absent or sides & absent or (None in present and absent >= {"left", "right"})):
        return CONTRADICTORY
    if sides:
        return "both" if len(sides) == 2 else sides.pop()
    if present:
        return str(finding.present) if not absent else _not(absent)
    return finding.opposites[str(finding.present)] if None in absent or len(absent) == 2 else _not(absent)


def _not(values: set[str]) -> str:
    return "not " + ", ".join(sorted(values))

"""Sentences cut into clauses, and the words in them that a lexicon knows: findings, sides, negations ..."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from medfinetune.evaluation.lexicon import Cue, Lexicon

# A question mark asks about what follows it where a sentence or a bracket begins with it, or a word: "? pneumonia",
# "（?肺炎）", "opacity ?pneumonia".
_SENTENCE_END = re.compile(r"[;!\n。；！]|(?<=[^\s(,:.;?!])(?:\?+|\s+\?+(?!\w))|\.(?!\d)")
# Where a phrase can begin: at a Latin word or at any other sign.
_START = re.compile(r"(?<![a-z0-9])[a-z]|[^a-z\s]")
_ARTICLES = re.compile(r"\b(?:the|a|an|any)\b")
_LIST = re.compile(r"[\s,]*(?:(?<![a-z])(?:and|or|nor)(?![a-z])|以及|[&、或及和与,/])[\s,]*")


class Mark(NamedTuple):
    """Where a cue stands in its sentence."""

    cue: Cue
    start: int
    end: int


@dataclass
class Clause:
    """A part of a sentence in which a negation, a side or a severity reaches.

    Attributes:
        start: Where it begins in the sentence.
        opened_by: The kind of the cue that ends the clause before it; empty for the first.
        carried: The kinds of cues of clauses before it that reach into it over commas.
    """

    text: str
    start: int
    marks: list[Mark]
    opened_by: str
    carried: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._by_kind: dict[str, list[Mark]] = defaultdict(list)
        for mark in self.marks:
            self._by_kind[mark.cue.kind].append(mark)

    def of(self, kind: str) -> list[Mark]:
        return self._by_kind.get(kind, [])


@dataclass
class Sentence:
    """A sentence in lower case, its clauses, and whether it ends with a question mark."""

    text: str
    clauses: list[Clause]
    is_question: bool

    def findings(self) -> list[str]:
        """The names of the findings that it speaks of."""
        return list(dict.fromkeys(mark.cue.finding for clause in self.clauses for mark in clause.of("finding")))


def read_sentences(text: str, lexicon: Lexicon) -> Iterator[Sentence]:
    """Cuts a text into its sentences, those that name no finding left out."""
    text = unicodedata.normalize("NFKC", text).lower()
    start = 0
    for end in [*_SENTENCE_END.finditer(text), None]:
        words = text[start : end.start()] if end else text[start:]
        start = end.end() if end else start
        marks = _marks(words, lexicon)
        if any(mark.cue.kind == "finding" for mark in marks):
            yield Sentence(words, _clauses(words, marks), end is not None and end.group()[-1] == "?")


def joint_of_a_list(sentence: str, first: Mark, second: Mark, marks: list[Mark]) -> str | None:
    """The joint ("or", "、", ",") that stands between two marks; None where there is more than sides and severities."""
    between = without(sentence, first.end, second.start, [m for m in marks if m.cue.kind in ("side", "severity")])
    joint = _LIST.fullmatch(_ARTICLES.sub(" ", between))
    return (joint.group().replace(",", " ").strip() or ",") if joint else None


def list_joints(sentence: str, start: int, end: int) -> list[tuple[int, int]]:
    """Where the joints of a list ("and", "、") stand between two places."""
    return [joint.span() for joint in _LIST.finditer(sentence, start, end)]


def without(sentence: str, start: int, end: int, marks: list[Mark]) -> str:
    """A part of the sentence, the words of some marks left out."""
    letters = list(sentence[start:end])
    for mark in marks:
        for place in range(max(mark.start, start), min(mark.end, end)):
            letters[place - start] = " "
    return "".join(letters)


def _marks(sentence: str, lexicon: Lexicon) -> list[Mark]:
    found, starts = [], lexicon.starts
    for place in [match.start() for match in _START.finditer(sentence)]:
        for number in starts.get(sentence[place : place + 2]) or starts.get(sentence[place], ()):
            match = lexicon.cues[number].pattern.match(sentence, place)
            if match:
                found.append(Mark(lexicon.cues[number], place, match.end()))
    # "not only" is no "not", and "不规则" no "规则": the longer of two nested phrases is meant.
    return [mark for mark in found if not any(_inside(mark, other) for other in found)]


def _inside(mark: Mark, other: Mark) -> bool:
    return other.start <= mark.start and mark.end <= other.end and other.end - other.start > mark.end - mark.start


def _clauses(sentence: str, marks: list[Mark]) -> list[Clause]:
    ends = [mark for mark in marks if mark.cue.kind in ("clause_ends", "comma")]
    starts, stops = [0, *(mark.end for mark in ends)], [*(mark.start for mark in ends), len(sentence)]
    openers = ["", *(mark.cue.kind for mark in ends)]
    clauses = [
        Clause(
            sentence[start:stop], start, [mark for mark in marks if start <= mark.start and mark.end <= stop], opener
        )
        for start, stop, opener in zip(starts, stops, openers, strict=True)
    ]
    for i in range(1, len(clauses)):
        before, here = clauses[i - 1], clauses[i]
        if here.opened_by == "comma" and any(clause.of("list_words") for clause in _joined_by_commas(clauses, i)):
            carrying = {kind for kind in ("negation_before", "uncertain") if before.of(kind)}
            here.carried = before.carried | carrying
    return clauses


def _joined_by_commas(clauses: list[Clause], start: int) -> Iterator[Clause]:
    for clause in clauses[start:]:
        if clause.opened_by != "comma":
            return
        yield clause

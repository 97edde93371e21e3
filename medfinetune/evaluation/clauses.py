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
_SENTENCE_END = re.compile(r"[;!\n。；！]|(?<=[^\s(,:.;?!])(?:\?+|\s+\?+(?!\w))|(?<!\bvs)\.(?!\d)")
# Where a phrase can begin: at a Latin word or at any other sign.
_START = re.compile(r"(?<![a-z0-9])[a-z]|[^a-z\s]")
_ARTICLES = re.compile(r"\b(?:the|a|an|any)\b")
_OF_A_VERB = re.compile(r"not|never|cannot see|\w+n't|未")
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

    def is_bare(self, *kinds: str) -> bool:
        """Whether it holds phrases of findings and no more, but for articles and marks of the given kinds."""
        if not self.of("finding"):
            return not self.text.strip()
        marks = [mark for kind in ("finding", *kinds) for mark in self.of(kind)]
        rest = without(" " * self.start + self.text, self.start, self.start + len(self.text), marks)
        return not _ARTICLES.sub("", rest).strip()


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
            yield Sentence(words, _clauses(words, marks, lexicon), end is not None and end.group()[-1] == "?")


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
    found = [mark for mark in found if not any(_inside(mark, other) for other in found)]
    # Of two phrases of one finding that share a letter, the first.
    return [mark for mark in found if not any(_begins_within(mark, other) for other in found)]


def _inside(mark: Mark, other: Mark) -> bool:
    return other.start <= mark.start and mark.end <= other.end and other.end - other.start > mark.end - mark.start


def _begins_within(mark: Mark, other: Mark) -> bool:
    same = mark.cue.kind == "finding" and mark.cue.finding == other.cue.finding
    return same and other.start < mark.start < other.end


def _clauses(sentence: str, marks: list[Mark], lexicon: Lexicon) -> list[Clause]:
    ends = [mark for mark in marks if mark.cue.kind in ("clause_ends", "comma")]
    starts, stops = [0, *(mark.end for mark in ends)], [*(mark.start for mark in ends), len(sentence)]
    openers = ["", *(mark.cue.kind for mark in ends)]
    clauses = [
        Clause(sentence[start:stop], start, _of_clause(marks, sentence, start, stop, lexicon), opener)
        for start, stop, opener in zip(starts, stops, openers, strict=True)
    ]
    joined = ["", *(mark.cue.kind == "comma" or sentence[mark.start : mark.end] == "and" for mark in ends)]
    for i in range(1, len(clauses)):
        before, here = clauses[i - 1], clauses[i]
        if here.opened_by == "comma" and any(clause.of("list_words") for clause in _joined_by_commas(clauses, i)):
            carrying = {kind for kind in ("negation_before", "uncertain") if before.of(kind)}
            here.carried = before.carried | carrying
        elif joined[i] and here.is_bare() and _denies_a_list(before):
            # "No consolidation, effusion, and pneumothorax": what follows is the phrase of a finding and no more.
            here.carried = {"negation_before"}
    return clauses


def _denies_a_list(clause: Clause) -> bool:
    """Whether a clause denies what stands at its end, so that a list may go on behind it."""
    phrases = clause.of("finding")
    if not phrases:
        return "negation_before" in clause.carried
    denying = [cue for cue in clause.of("negation_before") if cue.end <= phrases[-1].start]
    # "It does not hurt, bleeds": such words deny a verb, and the next one is a statement of its own.
    words = [clause.text[cue.start - clause.start : cue.end - clause.start] for cue in denying]
    denied = not all(map(_OF_A_VERB.fullmatch, words))
    if not denied and "negation_before" not in clause.carried:
        return False
    return not clause.text[phrases[-1].end - clause.start :].strip()


def _of_clause(marks: list[Mark], sentence: str, start: int, stop: int, lexicon: Lexicon) -> list[Mark]:
    """The marks of a clause; a phrase of two findings is of the one whose context stands there, if any does."""
    own = [mark for mark in marks if start <= mark.start and mark.end <= stop]

    def has_context(mark: Mark) -> bool:
        context = lexicon.findings[mark.cue.finding].context
        return context is not None and context.search(sentence[start:stop]) is not None

    def belongs_elsewhere(mark: Mark) -> bool:
        others = [m for m in own if m.cue.kind == "finding" and m[1:] == mark[1:] and m != mark]
        if has_context(mark):
            return False
        return any(has_context(m) or lexicon.findings[mark.cue.finding].context is not None for m in others)

    return [mark for mark in own if mark.cue.kind != "finding" or not belongs_elsewhere(mark)]


def _joined_by_commas(clauses: list[Clause], start: int) -> Iterator[Clause]:
    for clause in clauses[start:]:
        if clause.opened_by != "comma":
            return
        yield clause

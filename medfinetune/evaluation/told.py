"""What one sentence tells of one finding: whether it is there, on which side, and how severe it is."""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from medfinetune.evaluation.clauses import Clause, Mark, Sentence, joint_of_a_list, list_joints, without
from medfinetune.evaluation.lexicon import Finding, Lexicon

_ARTICLES = re.compile(r"\b(?:the|a|an|any)\b")
_BEHIND = re.compile(r"\b(?:on|in|of|at|to|within)\s+(?:the\s+|both\s+|either\s+)?$")

_NEGATIONS = ("negation_before", "negation_next", "negation_after")


class Told(NamedTuple):
    """A phrase of a finding with all that its sentence adds to it.

    Attributes:
        value: The value that the phrase states; of two opposites always the present one, by whose `presence` the
            other is told.
    """

    value: str
    presence: str
    side: str | None
    severity: str | None

    def key(self, finding: Finding) -> tuple[str, str | None, str | None, str | None]:
        """Presence, value, side and severity as a statement of the finding has them."""
        return self.presence, None if finding.opposites else self.value, self.side, self.severity


class _Part(NamedTuple):
    """A side with the severity that goes with it, and whether it is denied: "not on the left"."""

    side: str | None
    severity: str | None
    denied: bool = False


def told_in(finding: Finding, sentence: Sentence, lexicon: Lexicon) -> Iterator[Told]:
    """All that a sentence tells of a finding, one for each side of each phrase."""
    clauses = sentence.clauses
    stating = [(i, mark) for i, clause in enumerate(clauses) for mark in clause.of("finding")]
    stating = [(i, mark) for i, mark in stating if mark.cue.finding == finding.name]
    if finding.context is not None:
        # "Heart enlarged, lungs normal": a context in the phrase's own clause goes before one elsewhere.
        near = [(i, mark) for i, mark in stating if finding.context.search(clauses[i].text)]
        stating = near or (stating if finding.context.search(sentence.text) else [])
    for i, mark in stating:
        if _is_past(mark, clauses[i]):
            continue
        denied = _is_denied(finding, mark, i, sentence, lexicon)
        uncertain = _is_uncertain(mark, i, sentence, lexicon)
        for part in _parts(finding, mark, i, sentence, lexicon):
            yield _told(finding, mark.cue.value, denied != part.denied, uncertain, part)


def _told(finding: Finding, value: str, denied: bool, uncertain: bool, part: _Part) -> Told:
    if finding.opposites and value != finding.present:
        value, denied = str(finding.present), not denied
    presence = "uncertain" if uncertain else "absent" if denied else "present"
    return Told(value, presence, part.side, part.severity if finding.severity and presence != "absent" else None)


def _is_past(mark: Mark, clause: Clause) -> bool:
    return any(cue.end <= mark.start for cue in clause.of("historical"))


def _is_denied(finding: Finding, mark: Mark, i: int, sentence: Sentence, lexicon: Lexicon) -> bool:
    clause = sentence.clauses[i]
    # "No effusion, heart normal": a list of what is denied holds nothing that says by itself that all is well.
    is_absence = bool(finding.opposites) and mark.cue.value != finding.present
    if "negation_before" in clause.carried and not is_absence:
        return True
    for cue in clause.of("negation_before"):
        if not finding.opposites and "(" in sentence.text[cue.end : mark.start]:
            continue  # "no osteoarthritis (grade 0)" has a grade
        if _denies(cue, mark, clause) and not (is_absence and _phrases_between(cue, mark, clause)):
            return True
    if any(cue.end <= mark.start and not _phrases_between(cue, mark, clause) for cue in clause.of("negation_next")):
        return True
    behind = _cues_behind("negation_after", i, sentence.clauses, lexicon)
    return any(_reaches_back(cue, mark, i, sentence) for cue in behind)


def _denies(cue: Mark, mark: Mark, clause: Clause) -> bool:
    """Whether a negation reaches a phrase behind it; an affirmation after another phrase ends it ("无出血、有增大")."""
    return cue.end <= mark.start and not any(
        other.end <= yes.start and yes.end <= mark.start
        for yes in clause.of("affirmation")
        for other in _phrases_between(cue, mark, clause)
    )


def _phrases_between(first: Mark, second: Mark, clause: Clause) -> list[Mark]:
    return [other for other in clause.of("finding") if first.end <= other.start and other.end <= second.start]


def _is_uncertain(mark: Mark, i: int, sentence: Sentence, lexicon: Lexicon) -> bool:
    clause = sentence.clauses[i]
    cues = [
        cue for kind in ("uncertain_after", "uncertain") for cue in _cues_behind(kind, i, sentence.clauses, lexicon)
    ]
    if "uncertain" in clause.carried or any(_reaches_back(cue, mark, i, sentence) for cue in cues):
        return True
    negations = clause.of("negation_before")
    for cue in clause.of("uncertain"):
        if any(negation.end <= cue.start for negation in negations):
            # "No suspicion of fracture" denies it.
            continue
        if cue.end <= mark.start and not any(
            # "Probable atelectasis without effusion" is sure of the second.
            cue.end <= negation.start and negation.end <= mark.start and _phrases_between(cue, negation, clause)
            for negation in negations
        ):
            return True
    return False


def _cues_behind(kind: str, i: int, clauses: list[Clause], lexicon: Lexicon) -> list[Mark]:
    """Cues that may reach back to a phrase: those of its clause, and of the next where a bare list goes on into it."""
    cues: list[Mark] = []
    if not any(clause.of(kind) for clause in clauses[i:]):
        return cues
    for number, clause in enumerate(clauses[i:]):
        phrases = clause.of("finding")
        cues += [
            cue
            for cue in clause.of(kind)
            if kind == "uncertain_after" or not any(other.start >= cue.end for other in phrases)
            if kind != "uncertain" or not any(negation.end <= cue.start for negation in clause.of("negation_before"))
            if number == 0 or _stands_behind_the_list(cue, clause, lexicon)
            if kind != "negation_after" or _is_last_word(cue, clause, lexicon)
        ]
        if not clause.is_bare("side", "severity"):
            break
    return cues


def _stands_behind_the_list(cue: Mark, clause: Clause, lexicon: Lexicon) -> bool:
    """Whether a cue in a later clause is of the list that goes on into it: before it stands a member, or nothing."""
    return not _unknown_words(clause, clause.start, cue.start, lexicon)


def _is_last_word(cue: Mark, clause: Clause, lexicon: Lexicon) -> bool:
    """Whether a cue that could deny what follows it has nothing to deny there: "no tension" denies no pneumothorax."""
    if not any(mark.start == cue.start for mark in clause.of("negation_before")):
        return True
    return not _unknown_words(clause, cue.end, clause.start + len(clause.text), lexicon)


def _unknown_words(clause: Clause, start: int, end: int, lexicon: Lexicon) -> str:
    marks = [mark for kind in ("finding", "side", "severity") for mark in clause.of(kind)]
    rest = without(" " * clause.start + clause.text, start, end, marks)
    return re.sub(r"\W", "", lexicon.fillers.sub(" ", _ARTICLES.sub(" ", rest)))


def _reaches_back(cue: Mark, mark: Mark, i: int, sentence: Sentence) -> bool:
    """Whether a cue behind phrases is of this one: of the nearest, and of those that a list joins to that one."""
    marks = [other for clause in sentence.clauses[i:] for other in clause.marks if other.end <= cue.start]
    phrases = [other for other in marks if other.cue.kind == "finding"]
    reached = phrases[-1:]
    for other in reversed(phrases[:-1]):
        joint = joint_of_a_list(sentence.text, other, reached[0], marks)
        # A comma alone joins nothing: "left effusion, mass not seen"; before "and" it does: "effusion, mass and scar".
        if joint is None or (joint == "," and len(reached) == 1):
            break
        reached.insert(0, other)
    return mark in reached


def _parts(finding: Finding, mark: Mark, i: int, sentence: Sentence, lexicon: Lexicon) -> list[_Part]:
    clause = sentence.clauses[i]
    severity = _severity(mark, clause, sentence.text) if finding.severity else None
    if finding.severity and severity is None:
        severity = _lent_severity(sentence.clauses, i, lexicon)
    if not finding.sided:
        return [_Part(None, severity)]
    side = _side(mark, clause, sentence.text, lexicon)
    lent = _lent_sides(sentence.clauses, i, lexicon)
    if side is None:
        return [_Part(part.side, part.severity or severity, part.denied) for part in lent] or [_Part(None, severity)]
    parts = _coordinated(side, mark, sentence, severity)
    told = {part.side for part in parts}
    return parts + [part for part in lent if (part.denied or part.severity) and part.side not in told]


def _side(mark: Mark, clause: Clause, sentence: str, lexicon: Lexicon) -> Mark | None:
    sides = clause.of("side")
    phrases = [m for m in clause.of("finding") if lexicon.findings[m.cue.finding].sided]
    if len(sides) == len(phrases):
        return sides[phrases.index(mark)]
    fitting = [side for side in sides if _fits(side, mark, phrases, clause, sentence)]

    def distance(side: Mark) -> tuple[bool, int, int]:
        # "X-ray of both knees: narrowing on the right": what stands before a colon comes last.
        apart = ":" in sentence[side.end : mark.start]
        return apart, max(side.start - mark.end, mark.start - side.end), side.start

    return min(fitting, key=distance, default=None)


def _fits(side: Mark, mark: Mark, phrases: list[Mark], clause: Clause, sentence: str) -> bool:
    for negation in clause.of("negation_before"):
        # "Right effusion without mass" tells no side of the mass.
        if side.end <= negation.start < mark.start and any(phrase.end <= negation.start for phrase in phrases):
            return False
    behind = [phrase for phrase in phrases if phrase.end <= side.start]
    ahead = [phrase for phrase in phrases if phrase.start >= side.end]
    if not behind or not ahead:
        return True
    if not _BEHIND.search(sentence[: side.start]):
        # "Pneumothorax or left effusion".
        return mark in ahead
    # "Effusion on the left or pneumothorax", but "opacity on the left, suspicious for pneumonia" is of one place.
    return mark in behind or not list_joints(sentence, side.end, ahead[0].start)


def _severity(mark: Mark, clause: Clause, sentence: str) -> str | None:
    severities, phrases = clause.of("severity"), clause.of("finding")
    for word in severities:
        # "Grade 3 (moderate): osteophytes" tells how severe the grade is, not the osteophytes.
        of = _enclosed(word, phrases, sentence)
        if of is mark:
            return word.cue.value
    free = [word for word in severities if _enclosed(word, phrases, sentence) is None]
    before = [word for word in free if word.end <= mark.start]
    if before and not _phrases_between(before[-1], mark, clause):
        return before[-1].cue.value
    after = [word for word in free if word.start >= mark.end]
    if after and not [phrase for phrase in phrases if phrase.start >= mark.end]:
        return after[0].cue.value
    return None


def _enclosed(word: Mark, phrases: list[Mark], sentence: str) -> Mark | None:
    if sentence[: word.start].rstrip()[-1:] != "(":
        return None
    return next((phrase for phrase in reversed(phrases) if phrase.end <= word.start), None)


def _coordinated(side: Mark, mark: Mark, sentence: Sentence, severity: str | None) -> list[_Part]:
    """The parts of "small left and moderate right effusions": all sides that a list joins to the phrase's own."""
    marks = sorted((m for clause in sentence.clauses for m in clause.marks), key=lambda m: m.start)
    sides = [m for m in marks if m.cue.kind == "side" and m.end <= mark.start]
    chain = [side]
    for other in reversed([m for m in sides if m.end <= side.start]):
        if joint_of_a_list(sentence.text, other, chain[0], marks) is None:
            break
        chain.insert(0, other)
    if len(chain) == 1 or side not in sides:
        return [_Part(side.cue.value, severity)]
    joints = [list_joints(sentence.text, one.end, two.start)[-1] for one, two in itertools.pairwise(chain)]
    limits = [0, *(place for joint in joints for place in joint), mark.start]
    words = [m for m in marks if m.cue.kind == "severity"]
    return [
        _Part(one.cue.value, next((w.cue.value for w in words[::-1] if start <= w.start < end), severity))
        for one, start, end in zip(chain, limits[::2], limits[1::2], strict=True)
    ]


def _lent_sides(clauses: list[Clause], i: int, lexicon: Lexicon) -> list[_Part]:
    """Sides told in clauses of their own: "a fracture, not on the left but on the right", "on the left, a fracture"."""
    parts = []
    for clause in clauses[i + 1 :]:
        if len(clause.of("side")) != 1 or not _tells_only(("side", "severity"), clause, lexicon):
            break
        parts.append(_part(clause))
    if not parts and i > 0 and len(clauses[i - 1].of("side")) == 1 and _tells_only(("side",), clauses[i - 1], lexicon):
        parts.append(_part(clauses[i - 1]))
    return parts


def _part(clause: Clause) -> _Part:
    severity = next((mark.cue.value for mark in clause.of("severity")), None)
    denied = any(clause.of(kind) for kind in _NEGATIONS)
    return _Part(clause.of("side")[0].cue.value, severity, denied)


def _lent_severity(clauses: list[Clause], i: int, lexicon: Lexicon) -> str | None:
    """A severity in a clause of its own: "left effusion, small"."""
    if i + 1 < len(clauses):
        words = clauses[i + 1].of("severity")
        if len(words) == 1 and _tells_only(("severity",), clauses[i + 1], lexicon):
            return words[0].cue.value
    return None


def _tells_only(kinds: tuple[str, ...], clause: Clause, lexicon: Lexicon) -> bool:
    if clause.of("finding"):
        return False
    marks = [mark for mark in clause.marks if mark.cue.kind in (*kinds, *_NEGATIONS)]
    end = clause.start + len(clause.text)
    rest = without(" " * clause.start + clause.text, clause.start, end, marks)
    return not re.sub(r"\W", "", lexicon.fillers.sub(" ", rest))

"""Lexicons: YAML files that name findings and the phrases that state them, compiled to patterns."""

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medfinetune.errors import InputError
from medfinetune.parser import read_yaml

_FOLDER = Path(__file__).parent / "lexicons"
_GENERAL = "general"
KINDS = (
    *("negation_before", "negation_next", "negation_after", "no_negation", "affirmation"),
    *("uncertain", "uncertain_after", "historical", "clause_ends", "list_words"),
)
"""The kinds of words that all lexicons share, beside sides and severities."""


@dataclass(frozen=True)
class Finding:
    """What a text can say about one thing.

    Attributes:
        values: All values that phrases state; those of a finding that is there or not are its two opposites.
        opposites: Value -> the value stated by denying it, the present one first; empty where denying one value leaves
            the others open.
        sided: Whether it is told of the left, the right or both.
        severity: Whether it is told as mild, moderate or severe.
        several: Whether more than one of the values may hold at once, as with colours.
        context: One of these words must stand beside a phrase; None where phrases speak for themselves.
    """

    name: str
    values: tuple[str, ...]
    opposites: dict[str, str]
    sided: bool
    severity: bool
    several: bool
    context: re.Pattern[str] | None

    @property
    def present(self) -> str | None:
        """The value that says that it is there; None where the values are no opposites."""
        return next(iter(self.opposites), None)


@dataclass(frozen=True)
class Cue:
    """A pattern and what its match means: a value of a finding (`finding`), a side, a negation ..."""

    kind: str
    pattern: re.Pattern[str]
    finding: str = ""
    value: str = ""


@dataclass(frozen=True)
class Lexicon:
    """All findings of one domain in all its languages.

    Attributes:
        starts: The first two letters of a phrase -> the numbers of the cues that may have such a phrase; or one letter,
            where the two are no key.
        fillers: Words that a clause may hold beside a side and yet tell of nothing else.
        questions_count: Whether a question states something, as a thing that is uncertain.
    """

    name: str
    findings: dict[str, Finding]
    cues: tuple[Cue, ...]
    starts: dict[str, tuple[int, ...]]
    fillers: re.Pattern[str]
    questions_count: bool = True


def load_lexicon(name_or_path: str | Path) -> Lexicon:
    """Reads a lexicon.

    Args:
        name_or_path: The name of one that comes with the library (`phantom`), or a YAML file.

    Raises:
        InputError: There is no such lexicon, or it is not in the form of those that come with the library.
    """
    named = _FOLDER / f"{name_or_path}.yaml"
    path = named if named.is_file() else Path(name_or_path)
    if not path.is_file():
        known = sorted(file.stem for file in _FOLDER.glob("*.yaml") if file.stem != _GENERAL)
        raise InputError(
            f"lexicon {name_or_path}: no such file, and no lexicon of that name (known: {', '.join(known)})"
        )
    stat = path.stat()
    return _load(path, stat.st_mtime_ns, stat.st_size)


@lru_cache
def _load(path: Path, *_changed: int) -> Lexicon:
    # Kept until the file changes: whoever writes a lexicon of their own loads it again and again.
    content = read_yaml(path)
    unknown = set(content) - {"findings", "questions_count", "ignored"}
    if unknown:
        raise InputError(f"{path}: {min(unknown)}: unknown key")
    table, questions_count = content.get("findings"), content.get("questions_count", True)
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path}: findings: must map each finding to its values")
    if not isinstance(questions_count, bool):
        raise InputError(f"{path}: questions_count: must be true or false")
    general = read_yaml(_FOLDER / f"{_GENERAL}.yaml")
    cues = _Cues()
    cues.add_general(general)
    if "ignored" in content:
        cues.add("ignored", _phrases(content["ignored"], f"{path}: ignored"))
    findings = {}
    for name, entry in table.items():
        where = f"{path}: findings: {name}"
        findings[name] = _finding(name, entry, where)
        for value, phrases in _phrases_by_value(entry, where).items():
            cues.add("finding", phrases, name, value)
    fillers = _pattern(_phrases(general["side_fillers"], "general: side_fillers"))
    return Lexicon(path.stem, findings, tuple(cues.cues), cues.by_start(), fillers, questions_count)


class _Cues:
    def __init__(self) -> None:
        self.cues: list[Cue] = []
        self.starts: dict[str, list[int]] = defaultdict(list)

    def add(self, kind: str, phrases: list[str], finding: str = "", value: str = "") -> None:
        # A space within a phrase stands for any white space, so it is no letter to look up.
        for start in {phrase[:2] if phrase[1:2].strip() else phrase[:1] for phrase in phrases}:
            self.starts[start].append(len(self.cues))
        self.cues.append(Cue(kind, _pattern(phrases), finding, value))

    def by_start(self) -> dict[str, tuple[int, ...]]:
        """First two letters -> cues, those of a single first letter included; single letters by themselves."""
        return {
            start: tuple(dict.fromkeys(numbers + self.starts.get(start[0], [])))
            for start, numbers in self.starts.items()
        }

    def add_general(self, general: dict[str, Any]) -> None:
        for kind in KINDS:
            self.add(kind, _phrases(general[kind], f"general: {kind}"))
        for kind, table in (("side", "sides"), ("severity", "severities")):
            for value, phrases in general[table].items():
                self.add(kind, _phrases(phrases, f"general: {table}: {value}"), value=value)
        self.add("comma", [","])


def _phrases_by_value(entry: dict[str, Any], where: str) -> dict[str, list[str]]:
    templates = _phrases(entry.get("templates", {"any": ["{}"]}), f"{where}: templates")
    for template in templates:
        if "{}" not in template:
            raise InputError(f"{where}: templates: {template!r} has no {{}}, where a value's word is put")
    result = {}
    for value, by_language in entry["values"].items():
        words = _phrases(by_language, f"{where}: values: {value}")
        result[str(value)] = [template.replace("{}", word) for template in templates for word in words]
    for value, by_language in entry.get("phrases", {}).items():
        if str(value) not in result:
            raise InputError(f"{where}: phrases: {value}: is none of the values {list(result)}")
        result[str(value)] += _phrases(by_language, f"{where}: phrases: {value}")
    stated: dict[str, str] = {}
    for value, phrases in result.items():
        for phrase in phrases:
            if stated.setdefault(phrase, value) != value:
                # Whatever holds it would contradict itself.
                raise InputError(f"{where}: {phrase!r} states both {stated[phrase]} and {value}")
    if not stated:
        raise InputError(f"{where}: has no phrase that could be read")
    return result


def _finding(name: str, entry: Any, where: str) -> Finding:
    if not isinstance(entry, dict) or not isinstance(entry.get("values"), dict):
        raise InputError(f"{where}: values: must map each value to its phrases by language")
    flags = ("sided", "severity", "several")
    unknown = set(entry) - {"values", "opposites", "context", "templates", "phrases", *flags}
    if unknown:
        raise InputError(f"{where}: {min(unknown)}: unknown key")
    for key in flags:
        if not isinstance(entry.get(key, False), bool):
            raise InputError(f"{where}: {key}: must be true or false")
    if not isinstance(entry.get("phrases", {}), dict):
        raise InputError(f"{where}: phrases: must map each value to its phrases by language")
    pair = [str(value) for value in entry.get("opposites", [])]
    if len(pair) not in (0, 2):
        raise InputError(f"{where}: opposites: must be two values, the present one first")
    if pair and entry.get("several"):
        raise InputError(f"{where}: several: of two opposites only one holds")
    values = tuple(dict.fromkeys([str(value) for value in entry["values"]] + pair))
    if pair and set(values) != set(pair):
        raise InputError(f"{where}: opposites: holds {pair}, but the values are {list(values)}")
    context = _pattern(_phrases(entry["context"], f"{where}: context")) if "context" in entry else None
    opposites = dict(zip(pair, reversed(pair), strict=True))
    sided, severity, several = (entry.get(key, False) for key in flags)
    return Finding(name, values, opposites, sided, severity, several, context)


def _phrases(by_language: Any, where: str) -> list[str]:
    if not isinstance(by_language, dict):
        raise InputError(f"{where}: must map each language to a list of phrases")
    phrases = [
        phrase for listed in by_language.values() for phrase in (listed if isinstance(listed, list) else [listed])
    ]
    for phrase in phrases:
        if not isinstance(phrase, str) or not phrase:
            raise InputError(f"{where}: {phrase!r} is no text; quote it")
    # As the texts are, before they are read.
    return [unicodedata.normalize("NFKC", phrase).lower() for phrase in phrases]


def _pattern(phrases: list[str]) -> re.Pattern[str]:
    """One pattern for all phrases; a longer one wins over a shorter one that begins it."""
    ordered = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
    return re.compile("|".join(_bounded(phrase) for phrase in ordered))


def _bounded(phrase: str) -> str:
    body = re.sub(r"(\\?\s)+", r"\\s+", re.escape(phrase))
    # "2-3", "2 or 3" and "3.5" state neither 2 nor 3; Latin words end at their letters, Chinese ones anywhere.
    before = r"(?<![a-z0-9])" if re.match(r"[a-z]", phrase) else ""
    after = r"(?![a-z0-9])" if re.search(r"[a-z]$", phrase) else ""
    if phrase[0].isdigit():
        before = r"(?<![\d.])(?<!\d[-–~/至到或])"
    if phrase[-1].isdigit():
        after = r"(?!\.?\d)(?!\s*(?:-|–|~|/|至|到|或|to|or)\s*\d)"
    return before + body + after

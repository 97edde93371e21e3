"""Lexicons: YAML files that name findings and the phrases that state them, compiled to patterns."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medfinetune.errors import InputError
from medfinetune.parser import read_yaml

_FOLDER = Path(__file__).parent / "lexicons"
_GENERAL = "general"


@dataclass(frozen=True)
class Finding:
    """What a text can say about one thing.

    Attributes:
        values: All values that phrases state; those of a sided finding are its two opposites.
        opposites: Value -> the value stated by denying it; empty where denying one leaves the others open.
        present: For a sided finding, the value that is told by its side (left, right or both); else None.
        context: One of these words must stand beside a phrase; None where phrases speak for themselves.
    """

    name: str
    values: tuple[str, ...]
    opposites: dict[str, str]
    present: str | None
    context: re.Pattern[str] | None


@dataclass(frozen=True)
class Cue:
    """A pattern and what its match means: a value of a finding (`finding`), a side, a negation ..."""

    kind: str
    pattern: re.Pattern[str]
    finding: str = ""
    value: str = ""


@dataclass(frozen=True)
class Lexicon:
    """All findings of one domain in all its languages."""

    name: str
    findings: dict[str, Finding]
    cues: tuple[Cue, ...]
    fillers: re.Pattern[str]


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
    return _load(path)


@lru_cache
def _load(path: Path) -> Lexicon:
    general = read_yaml(_FOLDER / f"{_GENERAL}.yaml")
    table = read_yaml(path).get("findings")
    if not isinstance(table, dict) or not table:
        raise InputError(f"{path}: findings: must map each finding to its values")
    cues = _general_cues(general)
    findings = {}
    for name, entry in table.items():
        where = f"{path}: findings: {name}"
        findings[name] = _finding(name, entry, where)
        templates = _phrases(entry.get("templates", {"any": ["{}"]}), f"{where}: templates")
        for value, by_language in entry["values"].items():
            words = _phrases(by_language, f"{where}: values: {value}")
            phrases = [template.replace("{}", word) for template in templates for word in words]
            cues.append(Cue("finding", _pattern(phrases), name, str(value)))
    fillers = _pattern(_phrases(general["side_fillers"], "general: side_fillers"))
    return Lexicon(path.stem, findings, tuple(cues), fillers)


def _general_cues(general: dict[str, Any]) -> list[Cue]:
    kinds = ("negation_before", "negation_after", "no_negation", "clause_ends", "list_words")
    cues = [Cue(kind, _pattern(_phrases(general[kind], f"general: {kind}"))) for kind in kinds]
    cues += [
        Cue("side", _pattern(_phrases(phrases, f"general: sides: {side}")), value=side)
        for side, phrases in general["sides"].items()
    ]
    return [*cues, Cue("comma", re.compile(","))]


def _finding(name: str, entry: Any, where: str) -> Finding:
    if not isinstance(entry, dict) or not isinstance(entry.get("values"), dict):
        raise InputError(f"{where}: values: must map each value to its phrases by language")
    unknown = set(entry) - {"values", "opposites", "sided", "context", "templates"}
    if unknown:
        raise InputError(f"{where}: {min(unknown)}: unknown key")
    pair = [str(value) for value in entry.get("opposites", [])]
    if len(pair) not in (0, 2) or (entry.get("sided") and not pair):
        raise InputError(f"{where}: opposites: must be two values, the present one first")
    values = tuple(dict.fromkeys([str(value) for value in entry["values"]] + pair))
    if pair and set(values) != set(pair):
        raise InputError(f"{where}: opposites: holds {pair}, but the values are {list(values)}")
    context = _pattern(_phrases(entry["context"], f"{where}: context")) if "context" in entry else None
    opposites = dict(zip(pair, reversed(pair), strict=True))
    return Finding(name, values, opposites, pair[0] if entry.get("sided") else None, context)


def _phrases(by_language: Any, where: str) -> list[str]:
    if not isinstance(by_language, dict):
        raise InputError(f"{where}: must map each language to a list of phrases")
    phrases = [
        phrase for listed in by_language.values() for phrase in (listed if isinstance(listed, list) else [listed])
    ]
    for phrase in phrases:
        if not isinstance(phrase, str) or not phrase:
            raise InputError(f"{where}: {phrase!r} is no text; quote it")
    return phrases


def _pattern(phrases: list[str]) -> re.Pattern[str]:
    """One pattern for all phrases; a longer one wins over a shorter one that begins it."""
    ordered = sorted(set(phrases), key=lambda phrase: (-len(phrase), phrase))
    return re.compile("|".join(_bounded(phrase.lower()) for phrase in ordered))


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

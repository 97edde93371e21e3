"""Who and what a case is of: the groups that results are told for."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

SMALL = 10
"""A group of fewer cases is too small for its figures to mean much; it is marked, not hidden."""

_AGE_BANDS = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (80, "65-79"), (math.inf, "80+"))
_AGE = re.compile(r"(\d+(?:\.\d*)?)\s*(y|m|w|d|years?|yrs?|years? old|岁)?")
_ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
_SEXES = {"f": "female", "female": "female", "woman": "female", "女": "female", "女性": "female"}
_MISSING = {"", "nan", "none", "null", "na", "n/a", "unknown", "unk", "u", "missing", "not known", "-", "?", "未知"}
_SEXES |= {"m": "male", "male": "male", "man": "male", "男": "male", "男性": "male"}


class Known(Protocol):
    """What a case must tell to be put into groups."""

    language: str
    source: str
    label: str | None
    metadata: Mapping[str, Any]


def age_band(value: Any) -> str | None:
    """The band of an age, e.g. `40-64`; None where it is no age from 0 to 120 years.

    A number is in years, and so are `45 years`, `45岁` and DICOM's `045Y`; `018M`, `006W` and `003D` are its months,
    weeks and days.
    """
    found = _AGE.fullmatch(str(value).strip().lower())
    if found is None:
        return None
    years = float(found[1]) / {"m": 12, "w": 52.18, "d": 365.25}.get(found[2] or "", 1)
    if not 0 <= years <= 120:
        return None
    return next(band for below, band in _AGE_BANDS if years < below)


def sex(value: Any) -> str | None:
    """`female` or `male`; any other word as it stands; None where there is none, or it says "unknown"."""
    word = str(value if value is not None else "").strip().lower()
    return None if word in _MISSING else _SEXES.get(word, word)


def skin_type(value: Any) -> str | None:
    """The type after Fitzpatrick, `1` to `6`, from a number (`2.0`) or a Roman one; None where it is neither."""
    word = str(value if value is not None else "").strip().lower().removesuffix(".0")
    word = _ROMAN.get(word, word)
    return word if word in _ROMAN.values() else None


_WAYS: dict[str, Callable[[Known], str | None]] = {
    "language": lambda case: case.language or None,
    "source": lambda case: case.source or None,
    "label": lambda case: case.label or None,
    "age": lambda case: age_band(case.metadata.get("age")),
    "sex": lambda case: sex(case.metadata.get("sex")),
    "skin_type": lambda case: skin_type(case.metadata.get("skin_type")),
}


def groups_of(cases: Sequence[Known], max_groups: int = 40) -> dict[str, dict[str, list[int]]]:
    """The rows of each group, way by way: `language`, `source`, `label`, `age`, `sex`, `skin_type`.

    Args:
        cases: Each is in one group of a way, or in none where it does not tell.
        max_groups: Of one way; the largest stay. Labels can be as many as there are answers.

    Returns:
        Way -> group -> rows, ascending. Labels stand by size, all others by name. A way that no case tells is left out.
    """
    result = {}
    for way, group_of in _WAYS.items():
        groups: dict[str, list[int]] = {}
        for row, case in enumerate(cases):
            group = group_of(case)
            if group is not None:
                groups.setdefault(group, []).append(row)
        largest = sorted(groups, key=lambda group: (-len(groups[group]), group))[:max_groups]
        if largest:
            result[way] = {group: groups[group] for group in (largest if way == "label" else sorted(largest))}
    return result

"""Figures as dots with their intervals as whiskers, drawn as inline SVG in the page's colours."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import escape

_WIDTH, _ROW, _LABEL, _VALUE, _BOTTOM = 640, 26, 236, 72, 28
_MAX_COLUMNS = 24
"""Of a label; a Chinese character takes two."""


@dataclass(frozen=True)
class Dot:
    """A figure of one thing.

    Attributes:
        label: What it is of.
        value: The figure; a dot without one is a heading.
        limits: Of its interval.
        note: Stands behind the label, e.g. how many cases it is of.
        is_main: Drawn filled, and as a line through all rows.
    """

    label: str
    value: float | None = None
    limits: tuple[float, float] | None = None
    note: str = ""
    is_main: bool = False


def draw_dots(dots: Sequence[Dot], title: str, highest: float = 1.0) -> dict[str, str]:
    """A row for each dot, from 0 to `highest`.

    Args:
        dots: From top to bottom.
        title: Of the plot.
        highest: Where the scale ends; a value beyond it is drawn at its end.

    Returns:
        `title`, `alt` (what the plot shows, in words) and `svg`.
    """
    left, right = _LABEL, _WIDTH - _VALUE
    height = _ROW * len(dots) + _BOTTOM

    def x(value: float) -> float:
        return round(left + (right - left) * min(1.0, max(0.0, value / highest)), 1)

    parts = []
    for step in range(5):
        at = highest * step / 4
        parts.append(_line(x(at), x(at), 0, height - _BOTTOM + 4, "var(--line)", 1))
        parts.append(_text(x(at), height - 6, f"{at:g}", "middle", "var(--soft)"))
    parts += [
        _line(x(dot.value), x(dot.value), 0, height - _BOTTOM, "var(--accent)", 1, dashed=True)
        for dot in dots
        if dot.is_main and dot.value is not None
    ]
    for place, dot in enumerate(dots):
        parts += _row(dot, _ROW * place + _ROW / 2, x)
    start = f'<svg viewBox="0 0 {_WIDTH} {height}" aria-hidden="true" focusable="false" font-size="15">'
    told = ", ".join(_told(dot) for dot in dots if dot.value is not None)
    return {"title": title, "alt": f"{title}: {told}", "svg": f"{start}{''.join(parts)}</svg>"}


def _row(dot: Dot, y: float, x: Callable[[float], float]) -> list[str]:
    name = f"{_short(dot.label)}{f' ({dot.note})' if dot.note else ''}"
    if dot.value is None:
        return [_text(0, y + 5, _short(dot.label), "start", "currentColor", bold=True)]
    parts = [_text(0 if dot.is_main else 10, y + 5, name, "start", "currentColor", bold=dot.is_main)]
    if dot.limits is not None:
        low, high = (x(limit) for limit in dot.limits)
        parts.append(_line(low, high, y, y, "var(--accent)", 2))
        parts += [_line(end, end, y - 4, y + 4, "var(--accent)", 2) for end in (low, high)]
    fill = "var(--accent)" if dot.is_main else "var(--card)"
    parts.append(
        f'<circle cx="{x(dot.value)}" cy="{y}" r="4.5" fill="{fill}" stroke="var(--accent)" stroke-width="2"/>'
    )
    parts.append(_text(_WIDTH, y + 5, _number(dot.value), "end", "currentColor", bold=dot.is_main))
    return parts


def _line(x1: float, x2: float, y1: float, y2: float, colour: str, width: int, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str, bold: bool = False) -> str:
    weight = ' font-weight="650"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(words)}</text>'


def _told(dot: Dot) -> str:
    interval = "" if dot.limits is None else f" ({_number(dot.limits[0])} to {_number(dot.limits[1])})"
    return f"{dot.label} {_number(dot.value)}{interval}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _short(label: str) -> str:
    """Cut where it would run into the plot."""
    taken = 0
    for place, character in enumerate(label):
        taken += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if taken > _MAX_COLUMNS:
            return label[: place - 1] + "…"
    return label

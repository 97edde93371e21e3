"""Training curves as inline SVG, from the log that the Trainer keeps."""

import io
import json
import re
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from medfinetune.errors import InputError

_LINES = ("#2f6fde", "#d9722b", "#2a9d67", "#a34fc4", "#c23b55", "#6b7a8f")
_TEXT = "#010203"
_PANELS: dict[str, str] = {
    "Loss": r"loss|eval_loss",
    "Recall@1 on the validation split": r"eval_(?:\w+_)?recall_at_1(?:_\w+)?",
    "Temperature": r"temperature",
    "Log of the temperature (logit_scale)": r"logit_scale",
    "Bias (logit_bias)": r"logit_bias",
    "Learning rate": r"learning_rate",
}
"""Title -> the log keys that share its axes."""


def read_log(run_dir: str | Path) -> list[dict[str, Any]]:
    """The Trainer's log history of a run folder, or of its last checkpoint; empty where it keeps none.

    Raises:
        InputError: `trainer_state.json` is no JSON.
    """
    folder = Path(run_dir)
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))
    for path in [
        folder / "trainer_state.json",
        *(checkpoint / "trainer_state.json" for checkpoint in checkpoints[::-1]),
    ]:
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8")).get("log_history", [])
            except (json.JSONDecodeError, AttributeError) as error:
                raise InputError(f"{path}: is no log of the Trainer: {error}") from error
    return []


def draw_curves(log: list[dict[str, Any]], prefix: str) -> list[dict[str, str]]:
    """One panel for each group of log keys that the log holds.

    Args:
        log: The Trainer's log history.
        prefix: Keeps the SVG ids of several runs on one page apart.

    Returns:
        For each panel `title`, `alt` (what it shows, in words) and `svg`.
    """
    panels = []
    for number, (title, keys) in enumerate(_PANELS.items()):
        lines: dict[str, list[tuple[float, float]]] = {}
        for entry in log:
            for key, value in entry.items():
                if re.fullmatch(keys, key) and isinstance(value, int | float):
                    lines.setdefault(key, []).append((entry.get("step", 0), value))
        if lines:
            ends = (f"{key} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for key, line in lines.items())
            alt = f"{title} by step: {'; '.join(ends)}"
            panels.append({"title": title, "alt": alt, "svg": _svg(lines, f"{prefix}-{number}-")})
    return panels


def _svg(lines: dict[str, list[tuple[float, float]]], prefix: str) -> str:
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.subplots()
        for (name, points), colour in zip(sorted(lines.items()), _LINES * len(lines), strict=False):
            marker = "o" if len(points) < 16 else None
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=name, marker=marker, markersize=3)
        axes.set_xlabel("step", color=_TEXT)
        axes.tick_params(colors=_TEXT)
        axes.grid(color=_TEXT, alpha=0.12, linewidth=0.7)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_TEXT)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=_TEXT)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inlined(stream.getvalue(), prefix)


def _inlined(svg: str, prefix: str) -> str:
    """Fits a file of its own into a page: no prologue, no namespaces, ids that do not clash, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = (
        re.sub(r'\bid="', f'id="{prefix}', svg)
        .replace('href="#', f'href="#{prefix}')
        .replace("url(#", f"url(#{prefix}")
    )
    svg = re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*"([^>]*?) (?:height|width)="[^"]*"', r"\1\2", svg, count=1)
    return svg.replace(_TEXT, "currentColor").replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)

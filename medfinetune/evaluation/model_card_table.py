"""The figures of the reports as a table for a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from medfinetune.evaluation.paired import OWN

TABLE_FILE = "model_card_table.md"
_HEAD = ("figure", "value", "95% interval", "control", "value minus control", "cases")
_LEFT_OUT = ("finding_precision", "finding_recall")


def model_card_table(results: Mapping[str, Any]) -> str:
    """A Markdown table: each figure, its interval, and beside it what a control reaches.

    The control is the strongest that there is: the image of another case from the start, else for the decoder alone,
    else a blank image, else no evidence.

    Args:
        results: What `results.json` holds, or its `reports`.

    Returns:
        The table and a line that says what it is of; empty where there are no reports.
    """
    reports = results.get("reports", results)
    own = (reports.get("conditions") or {}).get(OWN)
    if not own:
        return ""
    control = reports.get("group_control")
    of_control = reports["conditions"].get(control, {})
    differences = reports["differences"].get(control, {})
    lines = [_row(_HEAD), _row(["---"] * len(_HEAD))]
    for name, kind in reports["figures"].items():
        if name in _LEFT_OUT or own.get(name) is None:
            continue
        digits = 1 if kind["highest"] == 100 else 3
        value = f"{kind['words']} {'↑' if kind['higher_is_better'] else '↓'}", _number(own[name], digits)
        limits = _limits(own.get(f"{name}_ci"), digits)
        paired = differences.get(name)
        change = "n/a" if paired is None else f"{paired['difference']:+.{digits}f}"
        if paired is not None and paired["difference_ci"]:
            change += f" ({_limits(paired['difference_ci'], digits, sign='+')})"
        lines.append(_row([*value, limits, _number(of_control.get(name), digits), change, f"{kind['num_cases']:,}"]))
    return "\n".join([*lines, "", _note(reports, control)]) + "\n"


def _note(reports: Mapping[str, Any], control: str | None) -> str:
    beside = (
        f"The control is the same system with {control.replace('_', ' ')}. " if control else "There is no control. "
    )
    lexicon = f", findings by the lexicon {reports['lexicon']}" if reports.get("lexicon") else ""
    return (
        f"{reports['num_cases']:,} held-out cases of {reports['num_clusters']:,} patients or, where unknown, images"
        f"{lexicon}. {beside}Intervals: bootstrap by patient or image, {reports['num_resamples']:,} resamples; "
        "differences are paired. "
        + "; ".join(f"{name.replace('_', ' ')}: `{text}`" for name, text in reports["signatures"].items() if text)
    ).rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _limits(limits: Sequence[float | None] | None, digits: int, sign: str = "") -> str:
    if not limits or None in limits:
        return "n/a"
    return f"{limits[0]:{sign}.{digits}f} to {limits[1]:{sign}.{digits}f}"

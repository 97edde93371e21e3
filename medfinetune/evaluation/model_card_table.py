"""The figures of the reports as a table for a model card."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medfinetune.evaluation.paired import OWN
from medfinetune.evaluation.report_suite import CONDITIONS

TABLE_FILE = "model_card_table.md"
_HEAD = ("figure", "value", "95% interval", "control", "value minus control", "cases")
_HEAD_OF_MAIN = ("value", "95% interval", "system minus this")
_LEFT_OUT = ("finding_precision", "finding_recall")
_MAIN = ("finding_f1", "token_f1")


def model_card_table(results: Mapping[str, Any]) -> str:
    """A Markdown table: each figure, its interval, and beside it what a control reaches.

    The control is the strongest that there is: the image of another case from the start, else for the decoder alone,
    else a blank image, else no evidence. A second table has the main figure of every condition and other system.

    Args:
        results: What `results.json` holds, or its `reports`.

    Returns:
        The tables and a line that says what they are of; empty where there are no reports.
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
        cells = [*value, limits, _number(of_control.get(name), digits), _change(paired, digits)]
        lines.append(_row([*cells, f"{kind['num_cases']:,}"]))
    split = reports.get("split") or results.get("split")
    return "\n".join([*lines, "", *_of_main(reports), "", _note(reports, control, split)]) + "\n"


def main_figure(reports: Mapping[str, Any]) -> str:
    """The figure that counts: finding F1 or, where no text states a finding, token F1."""
    return next(name for name in _MAIN if reports["conditions"][OWN].get(name) is not None)


def condition_words(name: str) -> str:
    """A condition's name as a reader wants it."""
    return "the system" if name == OWN else name.replace("_", " ")


def case_words(reports: Mapping[str, Any], split: str | None = None) -> str:
    """How many cases of how many patients or images the figures are of, and of which split where it is known."""
    of_split = f" of the split {split}" if split else ""
    unit = {"patient": "patients", "image": "images"}.get(unit_words(reports), "patients or, where unknown, images")
    return f"{reports['num_cases']:,} cases{of_split}, of {reports['num_clusters']:,} {unit}"


def unit_words(reports: Mapping[str, Any]) -> str:
    """What the bootstrap draws."""
    known = reports.get("num_cases_of_known_patients")
    return {reports["num_cases"]: "patient", 0: "image"}.get(known, "patient or image")


def lexicon_words(reports: Mapping[str, Any]) -> str:
    """Whose findings they are, or that there are none to be right about; empty where no lexicon was given."""
    lexicon, own = reports.get("lexicon"), reports["conditions"][OWN]
    if not lexicon:
        return ""
    if own.get("finding_f1") is None or own.get("num_true") == 0:
        return f"The lexicon {lexicon} reads no finding in these references."
    return f"Findings are by the lexicon {lexicon}."


def _of_main(reports: Mapping[str, Any]) -> Iterator[str]:
    """The main figure of every condition and every other system, a row each."""
    main, others = main_figure(reports), reports.get("compared_with") or {}
    kind = reports["figures"][main]
    systems = [
        (_about(name), figures, reports["differences"].get(name)) for name, figures in reports["conditions"].items()
    ]
    systems += [(f"other system: {name}", given["figures"], given["differences"]) for name, given in others.items()]
    yield _row([f"{kind['words']} {'↑' if kind['higher_is_better'] else '↓'}", *_HEAD_OF_MAIN])
    yield _row(["---"] * (1 + len(_HEAD_OF_MAIN)))
    for words, figures, differences in systems:
        # Of the system itself there is no difference that could be known.
        change = "" if differences is None else _change(differences.get(main), 3)
        yield _row([words, _number(figures.get(main), 3), _limits(figures.get(f"{main}_ci"), 3), change])


def _about(condition: str) -> str:
    if condition == OWN:
        return CONDITIONS[OWN]
    words = condition_words(condition)
    return f"{words} ({CONDITIONS[condition]})" if condition in CONDITIONS else words


def _note(reports: Mapping[str, Any], control: str | None, split: str | None) -> str:
    seen = "The models have seen these cases: the figures say nothing of new ones. " if split == "train" else ""
    lexicon = lexicon_words(reports)
    beside = (
        f"The control is the same system with {control.replace('_', ' ')}. " if control else "There is no control. "
    )
    return (
        f"{case_words(reports, split)}. {seen}{lexicon}{' ' if lexicon else ''}{beside}Intervals: bootstrap by "
        f"{unit_words(reports)}, {reports['num_resamples']:,} resamples; differences are paired. "
        + "; ".join(f"{name.replace('_', ' ')}: `{text}`" for name, text in reports["signatures"].items() if text)
    ).rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _change(paired: Mapping[str, Any] | None, digits: int) -> str:
    if paired is None:
        return "n/a"
    limits = paired["difference_ci"]
    return f"{paired['difference']:+.{digits}f}" + (f" ({_limits(limits, digits, sign='+')})" if limits else "")


def _limits(limits: Sequence[float | None] | None, digits: int, sign: str = "") -> str:
    if not limits or None in limits:
        return "n/a"
    return f"{limits[0]:{sign}.{digits}f} to {limits[1]:{sign}.{digits}f}"

"""What the page shows of the reports: each condition's figures, plots, groups, and the worst cases."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from medfinetune.evaluation.dots import Dot, draw_dots
from medfinetune.evaluation.model_card_table import (
    case_words,
    condition_words,
    lexicon_words,
    main_figure,
    unit_words,
)
from medfinetune.evaluation.paired import OWN
from medfinetune.evaluation.report_suite import CONDITIONS, worst_first
from medfinetune.evaluation.thumbnails import data_uri

_THUMBNAIL_PX = 256
_PARTS = {
    "Findings: is it medically right?": ("finding_",),
    "Answers to questions": ("llava_med_", "lmms_eval_"),
    "Wording: how much of the reference's text is there?": ("bleu", "chrf", "rouge_l", "token_f1", "exact_match"),
    "As the models see it": ("encoder_similarity", "perplexity"),
}
_FOLDED = ("bleu", "encoder_similarity", "perplexity")
"""Tables that hold one of these are shown when asked for."""
_WAYS = ("finding", "language", "source", "label", "age", "sex", "skin_type")
_NUM_LABELS = 12
"""In the plot and the table; results.json holds more."""


def report_parts(
    reports: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    data_dir: str | Path | None,
    num_gallery: int,
    split: str | None = None,
) -> dict[str, Any] | None:
    """What the template shows.

    Args:
        reports: The figures that `score_reports` gives; nothing is shown where there are none.
        rows: Its rows, with `image` relative to `data_dir` where there is one.
        data_dir: What the images' paths are relative to.
        num_gallery: Cases in the gallery, worst first.
        split: Of the cases, where it is known.
    """
    if not reports:
        return None
    main = main_figure(reports)
    kinds = reports["figures"]
    return {
        "main": kinds[main]["words"],
        "cases": case_words(reports, split),
        "unit": unit_words(reports),
        "lexicon": lexicon_words(reports),
        "conditions": [(condition_words(name), about_condition(name)) for name in reports["conditions"]],
        "tables": list(_tables(reports)),
        "plots": [_with_markup(plot) for plot in _plots(reports, main)],
        "groups": list(_groups(reports, main)),
        "control": reports.get("group_control"),
        "cards": [_card(rows[i], data_dir) for i in worst_first(rows)[:num_gallery]],
        "num_rows": len(rows),
        "latency": reports.get("latency") or {},
    }


def report_headlines(reports: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The main figure of the system, with the control that saw other images, as the page's first cards show it."""
    own = (reports.get("conditions") or {}).get(OWN)
    if own:
        main = main_figure(reports)
        control = reports.get("group_control")
        yield {
            "part": "Reports: encoder and decoder as one system" if tells(reports) else "Reports",
            "name": _capital(reports["figures"][main]["words"]),
            "value": own[main],
            "limits": own.get(f"{main}_ci"),
            "control": reports["conditions"][control].get(main) if control else None,
            "control_name": control.replace("_", " ") if control else None,
            "floor": None,
            "count": f"{reports['figures'][main]['num_cases']} cases",
        }


def tells(reports: Mapping[str, Any]) -> bool:
    """Whether the system gives its decoder evidence, so that the decoder alone is another thing."""
    return (reports.get("evidence") or "none") != "none"


def about_condition(name: str) -> str:
    """What a condition is; its name in words where it is none of `CONDITIONS`."""
    return CONDITIONS.get(name, f"{name.replace('_', ' ')}: another way to give evidence")


def _tables(reports: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A table for each part of the figures: a row for each condition and each other system, a cell for each figure."""
    others = reports.get("compared_with") or {}
    systems = [(name, figures, reports["differences"].get(name, {})) for name, figures in reports["conditions"].items()]
    systems += [(f"other system: {name}", given["figures"], given["differences"]) for name, given in others.items()]
    for title, prefixes in _PARTS.items():
        names = [name for name in reports["figures"] if name.startswith(prefixes)]
        if names:
            yield {
                "title": title,
                "is_folded": any(name.startswith(_FOLDED) for name in names),
                "columns": [reports["figures"][name] for name in names],
                "rows": [
                    {
                        "name": condition_words(system),
                        "is_own": system == OWN,
                        "cells": [
                            {
                                "value": figures.get(name),
                                "limits": figures.get(f"{name}_ci"),
                                "digits": 1 if reports["figures"][name]["highest"] == 100 else 3,
                                "difference": differences.get(name),
                                "is_clear": _excludes_zero(differences.get(name)),
                            }
                            for name in names
                        ],
                    }
                    for system, figures, differences in systems
                ],
            }


def _plots(reports: Mapping[str, Any], main: str) -> Iterator[dict[str, str]]:
    words, highest = _capital(reports["figures"][main]["words"]), reports["figures"][main]["highest"]
    dots = [
        _dot(condition_words(name), figures, main, is_main=name == OWN)
        for name, figures in reports["conditions"].items()
        if figures.get(main) is not None
    ]
    for name, given in (reports.get("compared_with") or {}).items():
        if given["figures"].get(main) is not None:
            dots.append(_dot(f"other: {name}", given["figures"], main))
    yield draw_dots(dots, f"{words} by condition, with 95% intervals", highest)
    dots = []
    for way, groups in _shown_groups(reports):
        told = {group: figures for group, figures in groups.items() if figures.get(main) is not None}
        if told and way != "finding":
            dots.append(Dot(way.replace("_", " ")))
            dots += [_dot(group, figures, main, note=str(figures["num_cases"])) for group, figures in told.items()]
    if dots:
        yield draw_dots(dots, f"{words} of the system by group (cases), with 95% intervals", highest)


def _groups(reports: Mapping[str, Any], main: str) -> Iterator[dict[str, Any]]:
    for way, groups in _shown_groups(reports):
        if way == "finding" and main != "finding_f1":
            continue
        rows = []
        for group, figures in groups.items():
            difference = (figures.get("differences") or {}).get(main)
            rows.append(
                {
                    "name": group.replace("_", " ") if way == "finding" else group,
                    "num_cases": figures["num_cases"],
                    "is_small": figures["is_small"],
                    "value": figures.get(main),
                    "limits": figures.get(f"{main}_ci"),
                    "control": (figures.get("control") or {}).get(main),
                    "difference": difference,
                    "is_clear": _excludes_zero(difference),
                }
            )
        yield {"way": way, "rows": rows, "num_left_out": len(reports[f"by_{way}"]) - len(groups)}


def _shown_groups(reports: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for way in _WAYS:
        groups = reports.get(f"by_{way}") or {}
        largest = sorted(groups, key=lambda group: -groups[group]["num_cases"])[:_NUM_LABELS]
        if groups:
            yield way, {group: figures for group, figures in groups.items() if group in largest}


def _dot(label: str, figures: Mapping[str, Any], name: str, note: str = "", is_main: bool = False) -> Dot:
    limits = figures.get(f"{name}_ci")
    known = limits is not None and None not in limits
    return Dot(label, figures[name], tuple(limits) if known else None, note, is_main)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _with_markup(plot: Mapping[str, str]) -> dict[str, Any]:
    return {**plot, "svg": Markup(plot["svg"])}


def _excludes_zero(difference: Mapping[str, Any] | None) -> bool:
    limits = (difference or {}).get("difference_ci")
    return bool(limits) and None not in limits and (limits[0] > 0 or limits[1] < 0)


def _card(row: Mapping[str, Any], data_dir: str | Path | None) -> dict[str, Any]:
    image = Path(data_dir) / row["image"] if data_dir is not None and row.get("image") else None
    evidence = row.get("evidence") or {}
    others = {name.removeprefix("generated_"): text for name, text in row.items() if name.startswith("generated_")}
    return {
        **row,
        "thumbnail": data_uri(image, _THUMBNAIL_PX) if image is not None else None,
        "neighbours": evidence.get("neighbours") or [],
        "chips": [_chip(name, counts) for name, counts in (row.get("by_finding") or {}).items()],
        "labels": [_label(label) for label in evidence.get("labels") or []],
        "others": {name: text for name, text in others.items() if isinstance(text, str)},
    }


def _chip(name: str, counts: Mapping[str, int]) -> dict[str, Any]:
    right, stated, true = (counts[key] for key in ("num_right", "num_stated", "num_true"))
    fault = "left out" if not stated else "not in the reference" if not true else "stated otherwise"
    return {"name": name, "is_right": right == stated == true, "fault": fault}


def _label(label: Mapping[str, Any]) -> dict[str, Any]:
    probabilities = label.get("probabilities") or {}
    best = max(probabilities, key=probabilities.__getitem__, default=None)
    return {"task": label.get("task", ""), "value": best, "probability": probabilities.get(best)}

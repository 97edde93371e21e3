"""What the page shows of each grading task: figures, confusion matrices, nearest neighbours, calibration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medfinetune.evaluation.thumbnails import data_uri

_THUMBNAIL_PX = 144


def grading_parts(encoder: dict[str, Any], data_dir: str | Path | None) -> list[dict[str, Any]]:
    """A part for each task.

    Args:
        encoder: As `evaluate_encoder` gives it.
        data_dir: What the neighbours' paths are relative to.

    Returns:
        For each task that has a confusion matrix: `name`, `rows` (`name` and figures, way by way), `classes`,
        `confusions` (`name`, `rows` of true classes), `pictures`.
    """
    parts = []
    for task, figures in (encoder.get("zero_shot_by_attribute") or {}).items():
        values = (encoder.get("classes_by_attribute") or {}).get(task)
        if "confusion" not in figures or not values:
            continue
        ways = list(_ways(encoder, task, figures))
        shown = [(name, way) for name, way in ways if name in ("prompts", "5 nearest", "linear probe")]
        parts.append(
            {
                "name": task,
                "ordered": "kappa" in figures,
                "chance": figures["chance"],
                "majority": figures["majority"],
                "num_images": figures["num_images"],
                "rows": [{"name": name, "figures": way} for name, way in ways],
                "classes": values,
                "confusions": [{"name": name, "rows": _confusion(way["confusion"], values)} for name, way in shown],
                "pictures": [
                    _picture(row, data_dir) for row in (encoder.get("neighbours_by_attribute") or {}).get(task, [])
                ],
            }
        )
    return parts


def calibration_rows(encoder: dict[str, Any]) -> list[dict[str, Any]]:
    """Each probability as trained and, where there was a validation split, refitted on it."""
    calibration = encoder.get("calibration") or {}
    parts = {"text belongs to image": calibration.get("match") or {}}
    parts |= {f"class: {task}": part for task, part in (calibration.get("classes_by_attribute") or {}).items()}
    return [
        {"name": name, "state": state.replace("_", " "), "figures": part[state]}
        for name, part in parts.items()
        for state in ("as_trained", "refitted")
        if state in part
    ]


def _ways(encoder: dict[str, Any], task: str, figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "prompts", figures
    for language, way in (figures.get("by_language") or {}).items():
        yield f"prompts, {language}", way
    for number, way in (encoder.get("knn_by_attribute") or {}).get(task, {}).items():
        yield f"{number} nearest", way
    probe = (encoder.get("linear_probe_by_attribute") or {}).get(task)
    if probe:
        yield "linear probe", probe


def _confusion(table: list[list[int]], values: list[str]) -> list[dict[str, Any]]:
    rows = []
    for value, counts in zip(values, table, strict=True):
        total = sum(counts)
        cells = [{"count": count, "share": count / total if total else 0.0} for count in counts]
        rows.append({"value": value, "cells": cells, "total": total})
    return rows


def _picture(row: dict[str, Any], data_dir: str | Path | None) -> dict[str, Any]:
    def with_thumbnail(item: dict[str, Any]) -> dict[str, Any]:
        path = Path(data_dir) / item["image"] if data_dir is not None and item.get("image") else None
        return item | {"thumbnail": data_uri(path, _THUMBNAIL_PX) if path is not None else None}

    return with_thumbnail(row) | {"neighbours": [with_thumbnail(item) for item in row["neighbours"]]}

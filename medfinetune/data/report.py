"""`data_report.json`: what came in, what was kept, and why the rest was not."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from medfinetune.data.schema import MISSING_IMAGE, SOURCES, Dropped

_NUM_EXAMPLES = 5


def build_report(rows: Sequence[dict[str, Any]], dropped: Sequence[Dropped], num_records: int) -> dict[str, Any]:
    """Counts records in, pairs kept and records dropped.

    Args:
        rows: The rows of the parquet.
        dropped: All records that are not among them.
        num_records: How many came in.

    Raises:
        AssertionError: A record was neither kept nor dropped.
    """
    assert num_records == len(rows) + len(dropped), (num_records, len(rows), len(dropped))
    missing = {source: len(_missing_images(dropped, source)) for source in SOURCES}
    return {
        "records_in": num_records,
        "pairs": len(rows),
        "dropped": _count(item.reason for item in dropped),
        "dropped_by_source": _count_by((item.source, item.reason) for item in dropped),
        "dropped_examples": _examples(dropped),
        "missing_image_files": {source: count for source, count in missing.items() if count},
        "warnings": _warnings(rows, dropped),
        "images": len({sha256 for row in rows for sha256 in row["pixel_sha256"]}),
        "groups": len({row["group_id"] for row in rows}),
        "by_source": _count(row["source"] for row in rows),
        "by_split": _count(row["split"] for row in rows),
        "by_language": _count(row["language"] for row in rows),
        "by_task": _count(row["task"] for row in rows),
        "by_license": _count(row["license"] or "" for row in rows),
        "by_label": _count_by((row["source"], row["label"] or "") for row in rows),
        "by_source_and_split": _count_by((row["source"], row["split"]) for row in rows),
    }


def _count(values: Iterable[str]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _count_by(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: _count(values[key]) for key in sorted(values, key=SOURCES.index)}


def _examples(dropped: Sequence[Dropped]) -> dict[str, list[dict[str, str]]]:
    """A few different ones for each reason and source."""
    examples: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    num_listed: Counter[tuple[str, str]] = Counter()
    for item in dropped:
        of_reason = examples.setdefault(item.reason, {})
        if num_listed[item.reason, item.source] < _NUM_EXAMPLES and (item.source, item.where) not in of_reason:
            num_listed[item.reason, item.source] += 1
            values = {"source": item.source, "where": item.where, "detail": item.detail}
            of_reason[item.source, item.where] = values
    return {reason: list(found.values()) for reason, found in examples.items()}


def _missing_images(dropped: Sequence[Dropped], source: str) -> list[str]:
    names = {item.detail: None for item in dropped if item.source == source and item.reason == MISSING_IMAGE}
    return list(names)


def _warnings(rows: Sequence[dict[str, Any]], dropped: Sequence[Dropped]) -> list[str]:
    warnings = []
    kept = Counter(row["source"] for row in rows)
    lost = Counter(item.source for item in dropped)
    for source in SOURCES:
        missing = _missing_images(dropped, source)
        if lost[source] and not kept[source]:
            warnings.append(f"{source}: NOTHING IS KEPT of its {lost[source]:,} records")
        if missing:
            verb = "files are" if len(missing) > 1 else "file is"
            warnings.append(f"{source}: {len(missing):,} image {verb} missing, the first is {missing[0]}")
    return warnings

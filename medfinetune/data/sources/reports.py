"""The user's own reports: a table with an image column and a text column."""

import csv
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from medfinetune.data.schema import MISSING_IMAGE, OTHER_LANGUAGE, Dropped, Record, Split
from medfinetune.errors import InputError

OPTIONAL_COLUMNS = ("language", "split", "patient_id", "label", "license", "task", "question", "answer")
COLUMNS = ("image", "text", *OPTIONAL_COLUMNS)
_SPLITS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "validation": "validation",
    "test": "test",
}
_TASKS = ("caption", "report", "question")
_CHINESE = re.compile(r"[\u3400-\u9fff]")

Row = dict[str, Any]


def read(reports_file: Path, languages: Collection[str], columns: Mapping[str, str]) -> Iterator[Record | Dropped]:
    """Reads CSV, TSV, JSONL or parquet; a row is one record, several images stand with `|` between them.

    Args:
        reports_file: The table; its image paths are relative to its folder.
        languages: Rows in other languages are dropped. A row that names none is taken for Chinese where it holds
            Chinese characters, and for English otherwise.
        columns: Our names (`image`, `text` and the optional ones) to those in the file, where they differ. Columns
            that are not ours go to `metadata`.

    Raises:
        InputError: The file or a column is missing, or a row holds a split or a task that does not exist.
    """
    if not reports_file.is_file():
        raise InputError(f"{reports_file}: no such file (reports_file)")
    names = {name: name for name in COLUMNS}
    for name, theirs in columns.items():
        if name not in names:
            raise InputError(f"reports_columns: unknown column {name}; those are {', '.join(COLUMNS)}")
        names[name] = theirs
    empty = True
    for where, row in _rows(reports_file):
        if empty:
            _check_columns(reports_file, row, names, required={"image", "text", *columns})
        empty = False
        cells = {name: _text(row.get(theirs)) for name, theirs in names.items()}
        cells["image"] = row.get(names["image"])
        others = {key: _text(value) for key, value in row.items() if key not in names.values()}
        yield _read_row(reports_file, where, cells, {key: value for key, value in others.items() if value}, languages)
    if empty:
        raise InputError(f"{reports_file}: holds no row")


def _check_columns(path: Path, row: Row, names: dict[str, str], required: Collection[str]) -> None:
    for name in COLUMNS:
        if name in required and names[name] not in row:
            found = ", ".join(map(str, row))
            raise InputError(
                f"{path}: column {names[name]} is missing; it has {found} (`reports_columns` says which is which)"
            )


def _read_row(path: Path, where: str, cells: Row, metadata: Row, languages: Collection[str]) -> Record | Dropped:
    split = task = None
    if cells["split"]:
        split = _SPLITS.get(cells["split"].lower())
        if split is None:
            raise InputError(f"{path}: {where}: split {cells['split']!r} is none of train, validation, test")
    task = (cells["task"] or "report").lower()
    if task not in _TASKS:
        raise InputError(f"{path}: {where}: task {cells['task']!r} is none of {', '.join(_TASKS)}")
    question, answer, text = cells["question"], cells["answer"], cells["text"]
    if task == "question":
        if not question or not answer:
            return Dropped("reports", where, "question or answer is empty")
        text = text or f"{question} {answer}"
    images = _images(path, cells["image"])
    if not text:
        return Dropped("reports", where, "text is empty")
    if not images:
        return Dropped("reports", where, "no image is named")
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        return Dropped("reports", where, MISSING_IMAGE, " | ".join(missing))
    language = re.split("[-_]", cells["language"].lower())[0] or ("zh" if _CHINESE.search(text) else "en")
    if language not in languages:
        return Dropped("reports", where, OTHER_LANGUAGE, language)
    return Record(
        id=f"reports-{where.split()[-1]}",
        source="reports",
        where=where,
        images=[str(image) for image in images],
        text=text,
        language=language,
        task=task,
        question=question if task == "question" else None,
        answer=answer if task == "question" else None,
        label=cells["label"] or None,
        patient_id=cells["patient_id"] or None,
        group_keys=[f"patient:reports:{cells['patient_id']}"] if cells["patient_id"] else [],
        split=split,
        license=cells["license"] or None,
        metadata=metadata,
    )


def _images(path: Path, cell: Any) -> list[Path]:
    names = cell if isinstance(cell, list) else str(cell or "").split("|")
    return [path.parent / str(name).strip() for name in names if str(name).strip()]


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    suffix = path.suffix.lower()
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if suffix not in readers:
        raise InputError(f"{path}: must end in {', '.join(readers)} (reports_file)")
    return readers[suffix](path)


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    # A report may be longer than the 131,072 characters that the csv module takes by default.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            columns = reader.fieldnames or []
            repeated = next((column for column in columns if columns.count(column) > 1), None)
            if repeated is not None:
                raise InputError(f"{path}: column {repeated!r} stands more than once")
            # The header is row 1, as a spreadsheet counts.
            for number, row in enumerate(reader, start=2):
                if None in row:
                    raise InputError(f"{path}: row {number} has more cells than the header")
                yield f"row {number}", row
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not in UTF-8: {error}") from error
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num} is no CSV: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{path}: line {number} is no JSON object")
                    yield f"line {number}", row
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: line {number} is no JSON in UTF-8: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no parquet: {error}") from error

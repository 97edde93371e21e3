"""The user's own reports: a table with an image column and a text column."""

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from medfinetune.data.chat import chat_messages, words_of
from medfinetune.data.schema import (
    EMPTY_QUESTION,
    EMPTY_TEXT,
    MISSING_IMAGE,
    OTHER_LANGUAGE,
    Dropped,
    Record,
    Split,
)
from medfinetune.data.tables import Row, check_encoding, read_table
from medfinetune.errors import InputError

OPTIONAL_COLUMNS = ("language", "split", "patient_id", "study_id", "label", "license", "task", "question", "answer")
COLUMNS = ("image", "text", "messages", *OPTIONAL_COLUMNS)
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


def read(
    reports_file: Path,
    languages: Collection[str],
    columns: Mapping[str, str],
    incoming_dir: Path | None = None,
    encoding: str | None = None,
) -> Iterator[Record | Dropped]:
    """Reads CSV, TSV, JSONL or parquet; a row is one record, several images stand with `|` between them or as a list.

    A row with `messages`, in the chat form that TRL takes, is passed through: its text is what the assistant says.

    Args:
        reports_file: The table; its image paths are relative to its folder.
        languages: Rows in other languages are dropped. A row that names none is taken for Chinese where it holds
            Chinese characters, and for English otherwise.
        columns: Our names (`image`, `text` or `messages`, and the optional ones) to those in the file, where they
            differ. Columns that are not ours go to `metadata`.
        incoming_dir: Where images go that the table holds as bytes.
        encoding: See `read_table`.

    Raises:
        InputError: The file or a column is missing, or a row holds a split or a task that does not exist.
    """
    if not reports_file.is_file():
        raise InputError(f"{reports_file}: no such file (reports_file)")
    check_encoding(encoding)
    names = {name: name for name in COLUMNS}
    for name, theirs in columns.items():
        if name not in names:
            raise InputError(f"reports_columns: unknown column {name}; those are {', '.join(COLUMNS)}")
        names[name] = theirs
    empty = True
    for where, row in read_table(reports_file, encoding):
        if empty:
            if names["image"] not in row and "image" not in columns and "images" in row:
                # So TRL calls it.
                names["image"] = "images"
            text = "messages" if names["messages"] in row else "text"
            _check_columns(reports_file, row, names, required={"image", text, *columns})
        empty = False
        cells = {name: _text(row.get(theirs)) for name, theirs in names.items()}
        for name in ("image", "messages"):
            cells[name] = row.get(names[name])
        others = {key: _text(value) for key, value in row.items() if key not in names.values()}
        metadata = {key: value for key, value in others.items() if value}
        yield _read_row(reports_file, where, cells, metadata, languages, incoming_dir)
    if empty:
        raise InputError(f"{reports_file}: holds no row")


def _check_columns(path: Path, row: Row, names: dict[str, str], required: Collection[str]) -> None:
    for name in COLUMNS:
        if name in required and names[name] not in row:
            found = ", ".join(map(str, row))
            raise InputError(
                f"{path}: column {names[name]} is missing; it has {found} (`reports_columns` says which is which)"
            )


def _read_row(
    path: Path, where: str, cells: Row, metadata: Row, languages: Collection[str], incoming_dir: Path | None
) -> Record | Dropped:
    split = None
    if cells["split"]:
        split = _SPLITS.get(cells["split"].lower())
        if split is None:
            raise InputError(f"{path}: {where}: split {cells['split']!r} is none of train, validation, test")
    task = (cells["task"] or "report").lower()
    if task not in _TASKS:
        raise InputError(f"{path}: {where}: task {cells['task']!r} is none of {', '.join(_TASKS)}")
    question, answer, text = cells["question"], cells["answer"], cells["text"]
    images = _images(path, cells["image"], incoming_dir)
    if cells["messages"]:
        try:
            messages = chat_messages(cells["messages"], len(images))
        except ValueError as error:
            return Dropped("reports", where, "messages are no chat about these images", str(error))
        text = text or words_of(messages, "assistant")
        metadata = metadata | {"messages": messages}
    if task == "question":
        if not question or not answer:
            return Dropped("reports", where, EMPTY_QUESTION)
        text = text or f"{question} {answer}"
    if not text:
        return Dropped("reports", where, EMPTY_TEXT)
    if not images:
        return Dropped("reports", where, "no image is named")
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        return Dropped("reports", where, MISSING_IMAGE, " | ".join(missing))
    language = re.split("[-_]", cells["language"].lower())[0] or language_of(text)
    if language not in languages:
        return Dropped("reports", where, OTHER_LANGUAGE, language)
    study = cells["study_id"]
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
        group_keys=[f"study:reports:{study}"] if study else [],
        split=split,
        license=cells["license"] or None,
        metadata=metadata | ({"study_id": study} if study else {}),
    )


def language_of(text: str) -> str:
    """`zh` where the text holds Chinese characters, else `en`."""
    return "zh" if _CHINESE.search(text) else "en"


def _images(path: Path, cell: Any, incoming_dir: Path | None) -> list[Path]:
    values = cell if isinstance(cell, list) else cell.split("|") if isinstance(cell, str) else [cell]
    found = []
    for value in values:
        if isinstance(value, dict):
            # So the datasets library stores images.
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            found.append(_keep(value, incoming_dir or path.parent))
        elif str(value or "").strip():
            found.append(path.parent / str(value).strip())
    return found


def _keep(content: bytes, folder: Path) -> Path:
    """Writes an image that stands in a table to a file, the same one at every run, so that it is decoded but once."""
    target = folder / hashlib.sha256(content).hexdigest()
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".tmp")
        unfinished.write_bytes(content)
        # The journal knows files by their time of change too.
        os.utime(unfinished, (0, 0))
        unfinished.replace(target)
    return target


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, list | dict | bytes) else str(value).strip()

"""The user's own reports: a table with an image column and a text column."""

import difflib
import hashlib
import os
import re
import stat
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
from medfinetune.data.tables import WHOLE_FLOAT, Row, check_encoding, read_table, whole_number_columns
from medfinetune.data.text import language_of, tidy
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
_LANGUAGES = {
    "en": ("en", "eng", "english", "英文", "英语"),
    "zh": ("zh", "zho", "chi", "cn", "chinese", "中文", "汉语", "简体中文"),
}
_LANGUAGE_CODES = {name: code for code, names in _LANGUAGES.items() for name in names}
_QUESTION_MARKS = ("?", "？")


def read(
    reports_file: Path,
    languages: Collection[str],
    columns: Mapping[str, str],
    incoming_dir: Path | None = None,
    encoding: str | None = None,
    separator: str | None = None,
) -> Iterator[Record | Dropped]:
    """Reads CSV, TSV, JSONL or parquet; a row is one record, several images stand with `|` between them or as a list.

    A row with `question` and `answer` needs no text. A row with `messages`, in the chat form that TRL takes, is passed
    through: its text is what the assistant says, or where the user ends in a question mark, question and answer.

    Args:
        reports_file: The table; its image paths are relative to its folder.
        languages: Rows in other languages are dropped. A row that names none is taken for Chinese where it holds
            Chinese characters, and for English otherwise.
        columns: Our names (`image`, `text` or `messages`, and the optional ones) to those in the file, where they
            differ. Columns that are not ours go to `metadata`.
        incoming_dir: Where images go that the table holds as bytes.
        encoding: See `read_table`.
        separator: See `read_table`.

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
    named = [names[name] for name in ("patient_id", "study_id", "label")]
    whole = whole_number_columns(read_table(reports_file, encoding, separator, named), named)
    # So TRL calls the images.
    other_image = "images" if "image" not in columns and "images" not in names.values() else None
    empty = True
    for where, row in read_table(reports_file, encoding, separator):
        if empty:
            _check_columns(reports_file, row, names, {*_needed(row, names, other_image), *columns})
        empty = False
        cells = {name: _cell(row.get(theirs), theirs in whole) for name, theirs in names.items()}
        cells["image"], cells["messages"] = row.get(names["image"]), row.get(names["messages"])
        taken = set(names.values())
        if other_image and not cells["image"]:
            cells["image"] = row.get(other_image)
            taken.add(other_image)
        others = {key: _text(value) for key, value in row.items() if key not in taken}
        metadata = {key: value for key, value in others.items() if value}
        yield _read_row(reports_file, where, cells, metadata, languages, incoming_dir)
    if empty:
        raise InputError(f"{reports_file}: holds no row")


def _needed(row: Row, names: Mapping[str, str], other_image: str | None) -> set[str]:
    needed = set() if other_image in row else {"image"}
    if names["messages"] in row:
        return needed | {"messages"}
    asks = names["question"] in row and names["answer"] in row
    return needed if asks else needed | {"text"}


def _check_columns(path: Path, row: Row, names: dict[str, str], required: Collection[str]) -> None:
    for name in COLUMNS:
        if name not in required or names[name] in row:
            continue
        found = list(map(str, row))
        near = difflib.get_close_matches(names[name], found, n=1)
        hint = "`reports_columns` says which is which"
        if near:
            hint = f"did you mean {near[0]}? {hint}"
        raise InputError(f"{path}: column {names[name]} is missing; it has {', '.join(found)} ({hint})")


def _read_row(
    path: Path, where: str, cells: Row, metadata: Row, languages: Collection[str], incoming_dir: Path | None
) -> Record | Dropped:
    split = None
    if cells["split"]:
        split = _SPLITS.get(cells["split"].lower())
        if split is None:
            raise InputError(f"{path}: {where}: split {cells['split']!r} is none of train, validation, test")
    task = cells["task"].lower()
    if task and task not in _TASKS:
        raise InputError(f"{path}: {where}: task {cells['task']!r} is none of {', '.join(_TASKS)}")
    question, answer, text = cells["question"], cells["answer"], cells["text"]
    images = _images(path, cells["image"], incoming_dir)
    if cells["messages"]:
        try:
            messages = chat_messages(cells["messages"], len(images))
        except ValueError as error:
            return Dropped("reports", where, "messages are no chat about these images", str(error))
        metadata = metadata | {"messages": messages}
        asked, said = words_of(messages, "user"), words_of(messages, "assistant")
        if not text and not task and asked.endswith(_QUESTION_MARKS):
            # A bare "Left." would caption the image with nothing.
            task, question, answer = "question", asked, said
        text = text or ("" if task == "question" else said)
    # An answer says little without its question.
    task = task or ("question" if not text and (question or answer) else "report")
    if task == "question":
        if not question or not answer:
            return Dropped("reports", where, EMPTY_QUESTION)
        text = text or f"{question} {answer}"
    if not text:
        return Dropped("reports", where, EMPTY_TEXT)
    if not images:
        return Dropped("reports", where, "no image is named")
    if problem := _problem(images):
        return Dropped("reports", where, *problem)
    language = _language(cells["language"]) or language_of(text)
    if language not in languages:
        understood = ", ".join(name for names in _LANGUAGES.values() for name in names)
        hint = "" if language in _LANGUAGES else f" (understood are {understood}, also as zh-CN)"
        return Dropped("reports", where, OTHER_LANGUAGE, language + hint)
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


def _language(cell: str) -> str:
    """The code of a language's name, as in `zh-CN`, `Chinese` and `Chinese (simplified)`; the name where unknown."""
    words = re.split(r"[\W_]+", cell.lower())
    return next((_LANGUAGE_CODES[word] for word in words if word in _LANGUAGE_CODES), cell.lower())


def _images(path: Path, cell: Any, incoming_dir: Path | None) -> list[Path]:
    values = cell if isinstance(cell, list) else cell.split("|") if isinstance(cell, str) else [cell]
    found = []
    for value in values:
        if isinstance(value, dict):
            # So the datasets library stores images.
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            found.append(_keep(value, incoming_dir or path.parent))
        elif value == value and str(value or "").strip():
            found.append(path.parent / str(value).strip())
    return found


def _problem(images: list[Path]) -> tuple[str, str] | None:
    """Why these are no files: a reason and what is particular to it."""
    missing = []
    for image in images:
        try:
            is_file = stat.S_ISREG(os.stat(image).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            is_file = False
        except (OSError, ValueError) as error:
            # A whole report in this cell, or a folder that nobody may enter.
            return "image path cannot be followed", f"{str(image)[:200]}: {getattr(error, 'strerror', error)}"
        if not is_file:
            missing.append(str(image))
    return (MISSING_IMAGE, " | ".join(missing)) if missing else None


def _keep(content: bytes, folder: Path) -> Path:
    """Writes an image that stands in a table to a file, the same one at every run, so that it is decoded but once."""
    target = folder / hashlib.sha256(content).hexdigest()
    unfinished = target.with_suffix(".tmp")
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(target)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written (output_dir): {error}") from error
    return target


def _cell(value: Any, whole: bool) -> str:
    text = tidy(_text(value))
    return WHOLE_FLOAT.fullmatch(text)[1] if whole and WHOLE_FLOAT.fullmatch(text) else text


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, list | dict | bytes) else str(value).strip()

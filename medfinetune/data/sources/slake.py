"""Questions and answers about scans, in English and Chinese: SLAKE 1.0 (https://www.med-vqa.com/slake/)."""

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from medfinetune.data.schema import MISSING_IMAGE, OTHER_LANGUAGE, SPLITS, Dropped, Record, Split
from medfinetune.errors import InputError

SplitBy = Literal["image", "fresh"]
# CC BY on the project's page, CC BY-SA on others.
LICENSE = "CC-BY-4.0 or CC-BY-SA-4.0 (ambiguous)"

# The published zip says validate, the copy on the Hub validation.
_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train.json",),
    "validation": ("validate.json", "validation.json"),
    "test": ("test.json",),
}
_KEYS = ("img_id", "img_name", "question", "answer", "q_lang", "qid")
_METADATA = ("qid", "img_id", "content_type", "answer_type", "base_type", "modality", "location")


def read(slake_dir: Path, languages: Collection[str], split_by: SplitBy) -> Iterator[Record | Dropped]:
    """Reads the three question files, wherever below `slake_dir` they lie, and finds their images beside them.

    The two languages were published with different splits. With `image`, a picture is in test if the test file of
    either language asks about it, else in validation if a validation file does, else in train. With `fresh`, the
    published splits are ignored.

    Raises:
        InputError: The folder or one of the files is missing, no list of questions, or a question lacks a key.
    """
    if not slake_dir.is_dir():
        raise InputError(f"{slake_dir}: no such folder (slake_dir)")
    found = sorted(slake_dir.rglob("train.json"), key=lambda path: (len(path.parts), path))
    if not found:
        raise InputError(f"{slake_dir}: holds no train.json (slake_dir)")
    folder = found[0].parent
    questions = [(split, where, row) for split in SPLITS for where, row in _questions(folder, split)]
    image_splits: dict[Any, Split] = {}
    for split, _, row in questions:
        # SPLITS ends with test, so the strongest stays.
        image_splits[row["img_id"]] = split
    seen: dict[tuple, str] = {}
    images: dict[str, Path | None] = {}
    for file_split, where, row in questions:
        question, answer, language = (row[key].strip() for key in ("question", "answer", "q_lang"))
        key = (row["img_id"], language, question, answer)
        first = seen.setdefault(key, where)
        name = row["img_name"]
        if name not in images:
            candidates = (folder / "imgs" / name, folder / name)
            images[name] = next((path for path in candidates if os.path.isfile(path)), None)
        if language not in languages:
            yield Dropped("slake", where, OTHER_LANGUAGE, language)
        elif not question or not answer:
            yield Dropped("slake", where, "question or answer is empty", f"qid {row['qid']}")
        elif first != where:
            yield Dropped("slake", where, "duplicate", f"same image, question and answer as {first}")
        elif images[name] is None:
            yield Dropped("slake", where, MISSING_IMAGE, f"imgs/{name}")
        else:
            split = image_splits[row["img_id"]] if split_by == "image" else None
            yield _record(row, where, images[name], split, file_split)


def _questions(folder: Path, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
    path = next((folder / name for name in _FILES[split] if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder / _FILES[split][0]}: no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: must hold a list of questions")
    for number, row in enumerate(rows, start=1):
        for key in _KEYS:
            if key not in row:
                raise InputError(f"{path}: question {number} has no {key}")
        for key in ("img_name", "question", "answer", "q_lang"):
            if not isinstance(row[key], str):
                raise InputError(f"{path}: question {number}: {key} must be text, but is {row[key]!r}")
        yield f"{path.name} question {number}", row


def _record(row: dict[str, Any], where: str, image: Path, split: Split | None, file_split: Split) -> Record:
    question, answer = row["question"].strip(), row["answer"].strip()
    return Record(
        id=f"slake-{row['q_lang']}-{row['qid']}",
        source="slake",
        where=where,
        images=[str(image)],
        text=f"{question} {answer}",
        language=row["q_lang"],
        task="question",
        question=question,
        answer=answer,
        label=answer if row.get("answer_type") == "CLOSED" else None,
        group_keys=[f"image:slake:{row['img_id']}"],
        split=split,
        license=LICENSE,
        metadata={key: row[key] for key in _METADATA if row.get(key) is not None} | {"published_split": file_split},
    )

"""The images that reports are asked for: a folder, or a list that is read line by line."""

import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from medfinetune.data.folders import walk
from medfinetune.data.images import PART, hash_patient
from medfinetune.data.tables import WHOLE_FLOAT, read_table
from medfinetune.data.text import tidy
from medfinetune.errors import InputError
from medfinetune.inference.config import ReportConfig
from medfinetune.inference.report import LANGUAGES, ReportRequest, is_unicode

_COLUMNS = ("image", "language", "patient_id", "prompt")
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
# DICOM often comes without an ending, or named by a UID, which ends in a number.
_IMAGES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".webp",
    ".bmp",
    ".gif",
    ".jp2",
    ".ppm",
    ".pgm",
    ".dcm",
    ".dicom",
    ".ima",
    ".jfif",
    "",
)


def read_requests(config: ReportConfig) -> Iterator[ReportRequest]:
    """What is asked for, in an order that is the same at every run; nothing is held in memory but a line.

    Raises:
        InputError: The input is missing or has no image, or a row is not as it must be; it is named.
    """
    path = Path(config.input)
    key = patient_key(config)
    if path.is_dir():
        rows = _files(path)
    elif path.suffix.lower() == ".txt":
        rows = _lines(path)
    elif path.suffix.lower() in _TABLES:
        rows = _rows(path)
    elif path.exists():
        raise InputError(f"{path}: must be a folder or end in .txt, {', '.join(_TABLES)} (input)")
    else:
        raise InputError(f"{path}: no such folder or file (input)")
    any_row = False
    for where, folder, row in rows:
        any_row = True
        yield _request(f"{path}: {where}", folder, row, config.language, key)
    if not any_row:
        raise InputError(f"{path}: holds no image (input)")


def count_requests(config: ReportConfig) -> int:
    """How many there are; errors are those of `read_requests`, which all come up here, before anything is written."""
    return sum(1 for _ in read_requests(config))


def patient_key(config: ReportConfig) -> bytes | None:
    """The key that patients' ids are hashed with, as `prepare` did.

    Raises:
        InputError: Its file cannot be read.
    """
    if config.patient_key_file is None:
        return None
    path = Path(config.patient_key_file).expanduser()
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read (patient_key_file): {error.strerror}") from error


def _files(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    for root, folders, files in walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path, suffix = Path(root) / name, Path(name).suffix.lower()
            if name.startswith(".") or not (suffix in _IMAGES or suffix[1:].isdigit()):
                continue
            if path.exists() and not path.is_file():
                continue  # a pipe would never end
            inside = os.path.relpath(path, folder)
            yield inside, folder, {"image": [inside]}


def _lines(path: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"line {number}", path.parent, {"image": line.strip()}
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not in UTF-8 ({error})") from error


def _rows(path: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    for where, row in read_table(path):
        unknown = next((name for name in row if name not in _COLUMNS), None)
        if unknown is not None:
            raise InputError(
                f"{path}: {where}: unknown column {unknown!r} (known: {', '.join(_COLUMNS)}; each row needs image)"
            )
        yield where, path.parent, row


def _request(where: str, folder: Path, row: dict[str, Any], language: str, key: bytes | None) -> ReportRequest:
    given = row.get("image")
    # As in the tables that prepare reads.
    named = [part.strip() for part in given.split("|")] if isinstance(given, str) else given
    if not isinstance(named, list) or not named or not all(isinstance(name, str) and name for name in named):
        raise InputError(f"{where}: column image must name an image, or several with | between them")
    spoken = row.get("language") or language
    if spoken not in LANGUAGES:
        raise InputError(f"{where}: language {spoken!r} is none of {', '.join(LANGUAGES)}")
    if any("\0" in name for name in named):
        raise InputError(f"{where}: the name of the image holds a NUL")
    prompt = row.get("prompt") or None
    if prompt is not None and not (isinstance(prompt, str) and is_unicode(prompt)):
        raise InputError(f"{where}: column prompt holds no text")
    paths = [f"{folder / name.partition(PART)[0]}{''.join(name.partition(PART)[1:])}" for name in named]
    patient = _patient(row.get("patient_id"), key)
    return ReportRequest(paths, spoken, patient, prompt, "|".join(named), key)


def _patient(cell: Any, key: bytes | None) -> Hashable | None:
    """Whose images they are: the id as `prepare` reads it; pandas writes 7 as 7.0 where a column has gaps, so both."""
    written = tidy(str(cell)) if cell is not None else ""
    if not written:
        return None
    whole = WHOLE_FLOAT.fullmatch(written)
    ids = frozenset(hash_patient(one, key) if key else one for one in (written, *(whole.groups() if whole else ())))
    return ids if whole else next(iter(ids))

"""Knee X-rays of the Osteoarthritis Initiative as cropped and graded by Chen (Mendeley 56rmx5bjcr)."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from medfinetune.data.folders import walk
from medfinetune.data.kellgren_lawrence import caption
from medfinetune.data.schema import Dropped, Record, Split
from medfinetune.errors import InputError

SplitBy = Literal["published", "pooled"]
LICENSE = "CC-BY-4.0"

_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_SPLIT_FOLDERS = (*_SPLITS, "auto_test")
_FILE_NAME = re.compile(r"(\d{7})([LR])(?:\D.*)?")
_IMAGE = re.compile(r"(?!\.).*\.(png|jpe?g|bmp|tiff?)", re.IGNORECASE)


def read(chen_dir: Path, languages: Iterable[str], split_by: SplitBy) -> Iterator[Record | Dropped]:
    """Reads the published tree, `.../{train,val,test}/{0..4}/9003175L.png`, however deep it lies below `chen_dir`.

    A file is one record for each language. The first seven digits are the patient, the letter is the side. With
    `published` the folders' splits are honoured, with `pooled` the split is drawn anew.

    Raises:
        InputError: The folder is missing or holds no such tree.
    """
    if not chen_dir.is_dir():
        raise InputError(f"{chen_dir}: no such folder (chen_dir)")
    empty = True
    for path, folder in _files(chen_dir):
        empty = False
        where = str(path.relative_to(chen_dir))
        name = _FILE_NAME.fullmatch(path.stem)
        for language in languages:
            if folder == "auto_test":
                yield Dropped("chen", where, "auto_test shows the knees of test again")
            elif name is None:
                yield Dropped("chen", where, "file name names no patient and side", path.name)
            else:
                yield _record(path, where, folder, name, language, split_by)
    if empty:
        raise InputError(f"{chen_dir}: holds no folder like train/0 with images (chen_dir)")


def _files(chen_dir: Path) -> Iterator[tuple[Path, str]]:
    """The image files in order, with the name of their split's folder."""
    for folder, names, files in walk(chen_dir):
        names[:] = sorted(name for name in names if name != "__MACOSX")
        path = Path(folder)
        if re.fullmatch("[0-4]", path.name) and path.parent.name in _SPLIT_FOLDERS:
            yield from ((path / name, path.parent.name) for name in sorted(files) if _IMAGE.fullmatch(name))


def _record(path: Path, where: str, folder: str, name: re.Match, language: str, split_by: SplitBy) -> Record:
    grade = path.parent.name
    # The published archive holds the same knees at two sizes, in folders of their own.
    record_id = "-".join(filter(None, ("chen", _size_of(path), path.stem, language)))
    return Record(
        id=record_id,
        source="chen",
        where=where,
        images=[str(path)],
        text=caption(int(grade), language, record_id),
        language=language,
        task="caption",
        label=grade,
        patient_id=name[1],
        split=_SPLITS[folder] if split_by == "published" else None,
        license=LICENSE,
        metadata={
            "modality": "X-ray",
            "body_part": "knee",
            "side": {"L": "left", "R": "right"}[name[2]],
            "published_split": _SPLITS[folder],
        },
    )


def _size_of(path: Path) -> str:
    found = re.search(r"\d{3,4}$", path.parent.parent.parent.name)
    return found[0] if found else ""

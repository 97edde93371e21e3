"""The user's own reports: a folder of images with a .txt file beside each, or beside all of a study."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from medfinetune.data.folders import walk
from medfinetune.data.schema import EMPTY_TEXT, OTHER_LANGUAGE, Dropped, Record
from medfinetune.data.tables import check_encoding, encoding_of
from medfinetune.data.text import language_of
from medfinetune.errors import InputError

_LEFT_ALONE = re.compile(r"\..*|thumbs\.db|desktop\.ini|dicomdir", re.IGNORECASE)
# What other programs lay beside an image about it.
_SIDE_CARS = (".json", ".xml", ".csv", ".tsv")
_NUMBER = re.compile(r"(?P<mark>[-_ ]?\(?)\d+\)?")


def read(reports_dir: Path, languages: Collection[str], encoding: str | None = None) -> Iterator[Record | Dropped]:
    """Reads `a.txt` for `a.png`, and for `a_1.png`, `a_2.png` (one study); a text alone in its folder is of all images.

    Where a name ends in a digit, its numbered images need a mark: `case1.txt` is of `case1_2.png`, not of `case12.png`.

    Args:
        reports_dir: The folder, searched with all below it.
        languages: Texts in other languages are dropped; Chinese characters tell Chinese.
        encoding: Of the texts; what a file's mark says where left out, or UTF-8.

    Raises:
        InputError: The folder is missing or holds no .txt file, or the encoding does not exist.
    """
    if not reports_dir.is_dir():
        raise InputError(f"{reports_dir}: no such folder (reports_dir)")
    check_encoding(encoding)
    empty = True
    for folder, names, files in walk(reports_dir):
        names[:] = sorted(name for name in names if name != "__MACOSX")
        paths = [Path(folder, name) for name in sorted(files) if not _LEFT_ALONE.fullmatch(name)]
        texts = [path for path in paths if path.suffix.lower() == ".txt"]
        images = [path for path in paths if path.suffix.lower() not in (".txt", *_SIDE_CARS)]
        empty = empty and not texts
        owned = _images_by_text(texts, images)
        for text in texts:
            yield _read_study(text, owned[text], reports_dir, languages, encoding)
        claimed = {image for found in owned.values() for image in found}
        for image in images:
            if image not in claimed:
                yield Dropped("reports", str(image.relative_to(reports_dir)), "no text beside the image")
    if empty:
        raise InputError(f"{reports_dir}: holds no .txt file (reports_dir)")


def _images_by_text(texts: list[Path], images: list[Path]) -> dict[Path, list[Path]]:
    exact = {image.stem for image in images} & {text.stem for text in texts}
    found: dict[Path, list[Path]] = {}
    for text in texts:
        same = [image for image in images if image.stem == text.stem]
        numbered = [image for image in images if image.stem not in exact and _is_numbered(image.stem, text.stem)]
        found[text] = same or numbered
    if len(texts) == 1 and not found[texts[0]]:
        # `case10.png` is another case than `case1.txt`, though that has no image.
        others = (image for image in images if not _is_numbered(image.stem, texts[0].stem, anyhow=True))
        found[texts[0]] = list(others)
    return found


def _is_numbered(image: str, text: str, anyhow: bool = False) -> bool:
    number = _NUMBER.fullmatch(image[len(text) :]) if image.startswith(text) else None
    return number is not None and (anyhow or bool(number["mark"]) or not text[-1:].isdigit())


def _read_study(
    path: Path, images: list[Path], reports_dir: Path, languages: Collection[str], encoding: str | None
) -> Record | Dropped:
    where = str(path.relative_to(reports_dir))
    try:
        text = path.read_text(encoding=encoding or encoding_of(path)).strip()
    except OSError as error:
        return Dropped("reports", where, "text cannot be read", str(error.strerror))
    except UnicodeError as error:
        return Dropped("reports", where, "text is in another encoding", f"name it by `reports_encoding` ({error})")
    if not text:
        return Dropped("reports", where, EMPTY_TEXT)
    if not images:
        return Dropped("reports", where, "no image beside the text")
    language = language_of(text)
    if language not in languages:
        return Dropped("reports", where, OTHER_LANGUAGE, language)
    name = where.removesuffix(path.suffix).replace(os.sep, "/")
    return Record(
        id=f"reports-{name}",
        source="reports",
        where=where,
        images=[str(image) for image in images],
        text=text,
        language=language,
        task="report",
    )

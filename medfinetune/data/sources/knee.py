"""Knee X-rays graded by two experts: Gornale & Patravali, Digital Knee X-ray Images (Mendeley t9ndx37v5h)."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from PIL import Image

from medfinetune.data.folders import walk
from medfinetune.data.images import PART
from medfinetune.data.kellgren_lawrence import caption
from medfinetune.data.schema import Dropped, Record
from medfinetune.errors import InputError

Grader = Literal["I", "II", "agree", "both"]
Bilateral = Literal["keep", "split", "drop"]
LICENSE = "CC-BY-4.0"

_GRADER_FOLDER = re.compile(r"medical\W*expert\W*(i{1,2})", re.IGNORECASE)
_GRADE_FOLDER = re.compile(r"([0-4])\D*")
_NO_IMAGE = re.compile(r"\..*|thumbs\.db|desktop\.ini", re.IGNORECASE)
# One knee is never so wide; the strips of two are 640 x 161.
_STRIP_RATIO = 2.5


def read(
    knee_dir: Path, languages: Iterable[str], grader: Grader, bilateral: Bilateral = "keep"
) -> Iterator[Record | Dropped]:
    """Reads the published tree, `.../MedicalExpert-I/0Normal/*.png`, however deep it lies below `knee_dir`.

    A file is one record for each language. The same pixels stand under both graders and several times under each:
    `kellgren_lawrence.settle` sorts that out once they were seen.

    Args:
        knee_dir: The folder.
        languages: `en`, `zh` or both.
        grader: Whose grades are taken.
        bilateral: What becomes of a strip of two knees, which carries one grade: kept whole, split into its halves
            with the strip's grade each, or dropped.

    Raises:
        InputError: The folder, or that of the grader asked for, is missing or holds no image.
    """
    if not knee_dir.is_dir():
        raise InputError(f"{knee_dir}: no such folder (knee_dir)")
    found: set[str] = set()
    wanted = {grader} if grader in ("I", "II") else {"I", "II"}
    for path, expert in _files(knee_dir):
        found.add(expert)
        where = str(path.relative_to(knee_dir))
        grade = _GRADE_FOLDER.fullmatch(path.parent.name)
        strip = expert in wanted and grade is not None and _is_strip(path)
        parts = ("left", "right") if strip and bilateral == "split" else ("",)
        for language in languages:
            if grade is None:
                yield Dropped("knee", where, "not in the folder of a grade", f"{path.parent.name} names none of 0 to 4")
            elif expert not in wanted:
                yield Dropped("knee", where, "grade is not by the chosen grader", f"knee_grader: {grader}")
            elif strip and bilateral == "drop":
                yield Dropped("knee", where, "shows two knees", f"knee_bilateral: {bilateral}")
            else:
                for part in parts:
                    yield _record(path, where, expert, grade[1], language, strip, part)
    if not found:
        raise InputError(f"{knee_dir}: no image in a folder MedicalExpert-I or MedicalExpert-II (knee_dir)")
    if wanted - found:
        raise InputError(
            f"{knee_dir}: no image in a folder MedicalExpert-{min(wanted - found)} (knee_grader: {grader})"
        )


def _files(knee_dir: Path) -> Iterator[tuple[Path, str]]:
    """The image files in order, with the grader in whose folder each lies."""
    for folder, names, files in walk(knee_dir):
        names[:] = sorted(name for name in names if name != "__MACOSX")
        parents = [knee_dir.name, *Path(folder).relative_to(knee_dir).parts]
        experts = [match[1].upper() for parent in parents if (match := _GRADER_FOLDER.fullmatch(parent))]
        if experts:
            yield from ((Path(folder, name), experts[-1]) for name in sorted(files) if not _NO_IMAGE.fullmatch(name))


def _is_strip(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.width >= _STRIP_RATIO * image.height
    except Exception:
        # Why it cannot be read is found out, and said, when it is opened.
        return False


def _record(path: Path, where: str, expert: str, grade: str, language: str, strip: bool, part: str) -> Record:
    stem = re.sub(r"\W+", "-", path.stem).strip("-")
    record_id = "-".join(filter(None, ("knee", expert, grade, stem, part, language)))
    metadata = {"grader": expert, "modality": "X-ray", "body_part": "knee", "bilateral": strip and not part}
    return Record(
        id=record_id,
        source="knee",
        where=where,
        images=[f"{path}{PART}{part}" if part else str(path)],
        text=caption(int(grade), language, record_id),
        language=language,
        task="caption",
        label=grade,
        # Both halves are one patient's.
        group_keys=[f"strip:knee:{where}"] if part else [],
        license=LICENSE,
        metadata=metadata | ({"half": part} if part else {}),
    )

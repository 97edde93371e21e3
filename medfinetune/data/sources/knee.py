"""Knee X-rays graded by two experts: Gornale & Patravali, Digital Knee X-ray Images (Mendeley t9ndx37v5h)."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from medfinetune.data.schema import Dropped, Pair, Record
from medfinetune.errors import InputError

Grader = Literal["I", "II", "agree", "both"]
LICENSE = "CC-BY-4.0"

_GRADER_FOLDER = re.compile(r"medical\W*expert\W*(i{1,2})", re.IGNORECASE)
_GRADE_FOLDER = re.compile(r"([0-4])\D*")
_NO_IMAGE = re.compile(r"\..*|thumbs\.db|desktop\.ini", re.IGNORECASE)

GRADE_NAMES = {
    "en": ("none", "doubtful", "mild", "moderate", "severe"),
    "zh": ("无", "可疑", "轻度", "中度", "重度"),
}
DESCRIPTIONS = {
    # Kellgren & Lawrence 1957, https://doi.org/10.1136/ard.16.4.494
    "en": (
        "no joint space narrowing and no osteophytes",
        "doubtful joint space narrowing and possible osteophytic lipping",
        "definite osteophytes and possible joint space narrowing",
        "multiple osteophytes, definite joint space narrowing, some sclerosis and possible deformity of bone ends",
        "large osteophytes, marked joint space narrowing, severe sclerosis and definite deformity of bone ends",
    ),
    "zh": (
        "关节间隙无狭窄，无骨赘",
        "关节间隙可疑狭窄，可能有骨赘",
        "有明确骨赘，关节间隙可能狭窄",
        "多发骨赘，关节间隙明确狭窄，有骨质硬化，骨端可能变形",
        "大量骨赘，关节间隙显著狭窄，严重骨质硬化，骨端明显变形",
    ),
}
WORDINGS = {
    "en": (
        "Knee X-ray, Kellgren-Lawrence grade {grade} ({name}): {description}.",
        "Radiograph of the knee with {description}. Osteoarthritis: {name}, KL grade {grade}.",
        "This knee X-ray shows {description}, Kellgren-Lawrence grade {grade}.",
        "Knee radiograph, osteoarthritis grade {grade} of 4 ({name}): {description}.",
    ),
    "zh": (
        "膝关节X线片，Kellgren-Lawrence {grade}级（{name}）：{description}。",
        "膝关节X线片显示{description}。骨关节炎：{name}，KL分级{grade}级。",
        "该膝关节X线片提示{description}，Kellgren-Lawrence分级为{grade}级。",
        "膝关节平片：{description}；骨关节炎程度：{name}，{grade}级（共4级）。",
    ),
}


def read(knee_dir: Path, languages: Iterable[str], grader: Grader) -> Iterator[Record | Dropped]:
    """Reads the published tree, `.../MedicalExpert-I/0Normal/*.png`, however deep it lies below `knee_dir`.

    A file is one record for each language. The same pixels stand under both graders and several times under each:
    `settle` sorts that out once they were seen.

    Raises:
        InputError: The folder, or that of the grader asked for, is missing or holds no image.
    """
    if not knee_dir.is_dir():
        raise InputError(f"{knee_dir}: no such folder (knee_dir)")
    files = [(path, match) for path in sorted(knee_dir.rglob("*")) if (match := _find_grader(path, knee_dir))]
    found = {expert for _, expert in files}
    if not found:
        raise InputError(f"{knee_dir}: no image in a folder MedicalExpert-I or MedicalExpert-II (knee_dir)")
    wanted = {grader} if grader in ("I", "II") else {"I", "II"}
    if wanted - found:
        raise InputError(
            f"{knee_dir}: no image in a folder MedicalExpert-{min(wanted - found)} (knee_grader: {grader})"
        )
    for path, expert in files:
        for language in languages:
            where = str(path.relative_to(knee_dir))
            grade_folder = _GRADE_FOLDER.fullmatch(path.parent.name)
            if grade_folder is None:
                yield Dropped("knee", where, "not in the folder of a grade", f"{path.parent.name} names none of 0 to 4")
            elif expert not in wanted:
                yield Dropped("knee", where, "grade is not by the chosen grader", f"knee_grader: {grader}")
            else:
                yield _record(path, where, expert, grade_folder[1], language)


def _find_grader(path: Path, knee_dir: Path) -> str | None:
    """The grader in whose folder a file lies; None for folders and for what is no image."""
    parents = [knee_dir.name, *path.relative_to(knee_dir).parts[:-1]]
    if "__MACOSX" in parents or _NO_IMAGE.fullmatch(path.name) or not path.is_file():
        return None
    experts = [match[1].upper() for parent in parents if (match := _GRADER_FOLDER.fullmatch(parent))]
    return experts[-1] if experts else None


def _record(path: Path, where: str, expert: str, grade: str, language: str) -> Record:
    stem = re.sub(r"\W+", "-", path.stem).strip("-")
    record_id = f"knee-{expert}-{grade}-{stem}-{language}"
    return Record(
        id=record_id,
        source="knee",
        where=where,
        images=[str(path)],
        text=caption(int(grade), language, record_id),
        language=language,
        task="caption",
        label=grade,
        license=LICENSE,
        metadata={"grader": expert, "modality": "X-ray", "body_part": "knee"},
    )


def caption(grade: int, language: str, key: str) -> str:
    """Words a Kellgren-Lawrence grade, 0 to 4; the same `key` always gets the same wording."""
    wordings = WORDINGS[language]
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    return wordings[number % len(wordings)].format(
        grade=grade, name=GRADE_NAMES[language][grade], description=DESCRIPTIONS[language][grade]
    )


def settle(pairs: Iterable[Pair], grader: Grader) -> Iterator[Pair | Dropped]:
    """Leaves one pair for each distinct image and language, and none where its grades differ.

    With `both`, an image keeps one pair for each grade that it carries. Of several pairs with the same pixels the
    first is kept or dropped as disputed, and the others are its duplicates: so the disputed ones count images.
    """
    by_image: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        own_grade = pair.record.label if grader == "both" else None
        by_image.setdefault((pair.pixels, pair.record.language, own_grade), []).append(pair)
    for same in by_image.values():
        first, *others = same
        first.record.metadata["bilateral"] = first.images[0].width_px >= 2.5 * first.images[0].height_px
        grades = sorted({pair.record.label for pair in same})
        if len(grades) > 1:
            given = ", ".join(f"{pair.record.where} (grade {pair.record.label})" for pair in same)
            yield first.drop("graders dispute the grade", given)
        else:
            first.record.metadata["grader"] = "+".join(sorted({pair.record.metadata["grader"] for pair in same}))
            yield first
        for pair in others:
            first.absorb(pair)
            yield pair.drop("duplicate", f"same pixels as {first.record.where}")

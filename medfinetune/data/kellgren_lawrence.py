"""The Kellgren-Lawrence grades of knee osteoarthritis: their words, and images that carry more than one."""

import hashlib
from collections.abc import Sequence

from medfinetune.data.schema import DUPLICATE, Dropped, Pair

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


def caption(grade: int, language: str, key: str) -> str:
    """Words a Kellgren-Lawrence grade, 0 to 4; the same `key` always gets the same wording."""
    wordings = WORDINGS[language]
    # A file name in another encoding is dropped later, with its reason.
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "backslashreplace")).digest()[:4], "big")
    return wordings[number % len(wordings)].format(
        grade=grade, name=GRADE_NAMES[language][grade], description=DESCRIPTIONS[language][grade]
    )


def settle(pairs: Sequence[Pair]) -> list[Pair | Dropped]:
    """Decides on pairs that show the same pixels in the same language: one outcome for each of them, in order.

    The first is kept, or dropped as disputed where the grades differ; the others are its duplicates. So disputed ones
    count images.
    """
    first, *others = pairs
    grades = {pair.record.label for pair in pairs}
    graders = {pair.record.metadata["grader"] for pair in pairs if "grader" in pair.record.metadata}
    outcome: Pair | Dropped = first
    if len(grades) > 1:
        given = ", ".join(f"{pair.record.where} (grade {pair.record.label})" for pair in pairs)
        outcome = first.drop("graders dispute the grade", given)
    elif graders:
        first.record.metadata["grader"] = "+".join(sorted(graders))
    for pair in others:
        first.absorb(pair)
    return [outcome, *(pair.drop(DUPLICATE, f"same pixels as {first.record.where}") for pair in others)]

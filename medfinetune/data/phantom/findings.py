"""What a generated image shows, and the sentences that say so in English and Chinese."""

import itertools
from typing import Any, Literal

import numpy as np

Findings = dict[str, str]
"""One value for each attribute of `ATTRIBUTES` that an image shows, in that order."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "view": ("frontal", "oblique"),
    "device": ("none", "pacemaker"),
    "fracture": ("none", "left", "right"),
    "effusion": ("none", "left", "right"),
    "heart": ("normal", "enlarged"),
    "knee_grade": ("0", "1", "2", "3", "4"),
    "lesion_colour": ("brown", "black", "red"),
    "lesion_border": ("regular", "irregular"),
}
"""Sides are the patient's, as in a radiograph: the patient's left is on the image's right."""
PARTS = {
    "chest": ("view", "device", "fracture", "effusion", "heart"),
    "knee": ("knee_grade",),
    "skin": ("lesion_colour", "lesion_border"),
}
"""The parts of the body that an image can show, and what can be seen there."""


_WORDS = {
    "left": "左侧",
    "right": "右侧",
    "brown": "褐色",
    "black": "黑色",
    "red": "红色",
}

# attribute -> value -> language -> wordings; "{}" takes the value itself, where several values share a wording.
_WORDINGS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "view": {
        "frontal": {
            "en": ("Frontal view.", "Frontal projection.", "View is frontal."),
            "zh": ("正位片。", "正位投照。", "为正位影像。"),
        },
        "oblique": {
            "en": ("Oblique view.", "Oblique projection.", "View is oblique."),
            "zh": ("斜位片。", "斜位投照。", "为斜位影像。"),
        },
    },
    "device": {
        "none": {
            "en": ("No pacemaker.", "No implanted device.", "Without pacemaker."),
            "zh": ("未见起搏器。", "无植入装置。", "无起搏器。"),
        },
        "pacemaker": {
            "en": ("Pacemaker in place.", "A pacemaker is seen.", "Implanted pacemaker."),
            "zh": ("可见起搏器。", "起搏器在位。", "见植入起搏器。"),
        },
    },
    "fracture": {
        "none": {
            "en": ("No fracture.", "No clavicle fracture.", "Clavicles intact."),
            "zh": ("未见骨折。", "无锁骨骨折。", "锁骨完整。"),
        },
        "side": {
            "en": ("{} clavicle fracture.", "Fracture of the {} clavicle.", "{} clavicle is broken."),
            "zh": ("{}锁骨骨折。", "{}锁骨可见骨折。", "{}锁骨断裂。"),
        },
    },
    "effusion": {
        "none": {
            "en": ("No effusion.", "No pleural effusion.", "No pleural fluid."),
            "zh": ("未见胸腔积液。", "无积液。", "无胸腔积液。"),
        },
        "side": {
            "en": ("{} pleural effusion.", "Effusion on the {}.", "Pleural fluid on the {} side."),
            "zh": ("{}胸腔积液。", "{}可见积液。", "{}胸腔见积液。"),
        },
    },
    "heart": {
        "normal": {
            "en": ("Heart size normal.", "Normal heart.", "Heart not enlarged."),
            "zh": ("心影正常。", "心脏大小正常。", "心影未增大。"),
        },
        "enlarged": {
            "en": ("Heart enlarged.", "Cardiomegaly.", "Enlarged heart."),
            "zh": ("心影增大。", "心脏增大。", "心脏扩大。"),
        },
    },
    "knee_grade": {
        "grade": {
            "en": ("Knee grade {}.", "Kellgren-Lawrence grade {}.", "Knee joint space of grade {}."),
            "zh": ("膝关节{}级。", "KL分级{}级。", "膝关节间隙为{}级。"),
        },
    },
    # Colour and border stand in one sentence, as they do in a clinical note; {0} is the colour.
    "lesion": {
        "regular": {
            "en": ("{} lesion, regular border.", "{} lesion with a smooth border.", "{} spot, border regular."),
            "zh": ("{}皮损,边界规则。", "{}皮损,边缘光滑。", "{}斑,边界规则。"),
        },
        "irregular": {
            "en": ("{} lesion, irregular border.", "{} lesion with a ragged border.", "{} spot, border irregular."),
            "zh": ("{}皮损,边界不规则。", "{}皮损,边缘毛糙。", "{}斑,边界不规则。"),
        },
    },
}


def sentences(attribute: str, findings: Findings, language: Literal["en", "zh"]) -> list[str]:
    """All wordings of one finding.

    Args:
        attribute: A key of `ATTRIBUTES`; for either of the lesion's two, the one sentence that holds both.
    """
    value, word = findings[attribute], findings[attribute]
    if attribute.startswith("lesion"):
        attribute, value, word = "lesion", findings["lesion_border"], findings["lesion_colour"]
    table = _WORDINGS[attribute]
    wordings = table.get(value) or table.get("side") or table["grade"]
    filled = [wording.format(_WORDS.get(word, word) if language == "zh" else word) for wording in wordings[language]]
    return [sentence[0].upper() + sentence[1:] for sentence in filled] if language == "en" else filled


def report(findings: Findings, language: Literal["en", "zh"], rng: np.random.Generator) -> str:
    """A report that states every given attribute once, each in one of its wordings."""
    said = [attribute for attribute in findings if attribute != "lesion_border"]
    chosen = [str(rng.choice(sentences(attribute, findings, language))) for attribute in said]
    return (" " if language == "en" else "").join(chosen)


def combinations(rng: np.random.Generator) -> list[Findings]:
    """Every combination of all attributes, in random order."""
    every = [dict(zip(ATTRIBUTES, values, strict=True)) for values in itertools.product(*ATTRIBUTES.values())]
    return [every[i] for i in rng.permutation(len(every))]


def zero_shot_tasks(rng: np.random.Generator, num_prompts: int = 128) -> dict[str, dict[str, dict[str, Any]]]:
    """What a zero-shot file asks of the images: `zero_shot_prompts`, and a few words that state each value.

    Returns:
        attribute -> value -> `prompts` and `statement` (language -> words).
    """
    return {
        attribute: {
            value: {"prompts": prompts, "statement": {lang: statement(attribute, value, lang) for lang in ("en", "zh")}}
            for value, prompts in by_value.items()
        }
        for attribute, by_value in zero_shot_prompts(rng, num_prompts).items()
    }


def statement(attribute: str, value: str, language: Literal["en", "zh"]) -> str:
    """One value of one attribute in a few words, without a full stop."""
    if attribute == "lesion_colour":
        return f"{_WORDS[value]}皮损" if language == "zh" else f"{value.capitalize()} lesion"
    if attribute == "lesion_border":
        zh = {"regular": "边界规则", "irregular": "边界不规则"}
        return zh[value] if language == "zh" else f"{value.capitalize()} border"
    return sentences(attribute, {attribute: value}, language)[0].rstrip(".。")


def zero_shot_prompts(rng: np.random.Generator, num_prompts: int = 128) -> dict[str, dict[str, list[str]]]:
    """Whole reports for each value of each attribute, the other attributes at random, in both languages.

    Returns:
        attribute -> value -> reports.
    """
    prompts: dict[str, dict[str, list[str]]] = {}
    for attribute, values in ATTRIBUTES.items():
        # The same random companions for every value: the classes then differ in nothing but the value.
        companions = [
            {name: str(rng.choice(options)) for name, options in ATTRIBUTES.items()} for _ in range(num_prompts)
        ]
        prompts[attribute] = {
            value: [
                report(other | {attribute: value}, "zh" if i % 2 else "en", rng) for i, other in enumerate(companions)
            ]
            for value in values
        }
    return prompts

import itertools

import numpy as np
import pytest

from medfinetune.data.phantom.findings import ATTRIBUTES, combinations, report, sentences
from medfinetune.evaluation.findings import CONTRADICTORY, Statement, read_findings, read_statements
from medfinetune.evaluation.lexicon import load_lexicon

LEXICON = load_lexicon("phantom")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_reads_every_wording_of_every_value(language):
    base = {name: values[0] for name, values in ATTRIBUTES.items()}
    for name, values in ATTRIBUTES.items():
        told = {"lesion_colour", "lesion_border"} if name.startswith("lesion") else {name}
        for value, border in itertools.product(values, ATTRIBUTES["lesion_border"]):
            truth = base | {"lesion_border": border} | {name: value}
            for sentence in sentences(name, truth, language):
                assert read_findings(sentence, LEXICON) == {
                    key: truth[key] for key in sorted(told, key=list(truth).index)
                }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_reads_every_combination(language):
    rng = np.random.default_rng(0)
    every = combinations(rng)
    assert len(every) == 2 * 2 * 3 * 3 * 2 * 5 * 3 * 2
    for truth in every:
        text = report(truth, language, rng)
        assert read_findings(text, LEXICON) == truth, text


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("No left effusion.", {"effusion": "not left"}),
        ("no left effusion, no right effusion", {"effusion": "none"}),
        ("No left or right effusion.", {"effusion": "none"}),
        ("Effusion on neither side.", {"effusion": "none"}),
        ("Left effusion, no right effusion.", {"effusion": "left"}),
        ("Bilateral pleural effusions.", {"effusion": "both"}),
        ("Effusion: none. Fracture: left.", {"effusion": "none", "fracture": "left"}),
        ("Effusion is not seen.", {"effusion": "none"}),
        ("Fracture is absent on the left.", {"fracture": "not left"}),
        ("The left clavicle is intact, fracture on the right.", {"fracture": "right"}),
        ("Left clavicle not intact.", {"fracture": "left"}),
        ("A fracture, not on the left but on the right.", {"fracture": "right"}),
        ("On the left, there is a fracture.", {"fracture": "left"}),
        ("Left clavicle fracture. The fracture is displaced.", {"fracture": "left"}),
        ("Left clavicle fracture, no other fracture.", {"fracture": "left"}),
        ("Clavicle fracture.", {"fracture": "present"}),
        ("No evidence of fracture on either side.", {"fracture": "none"}),
        ("No fracture, left effusion.", {"fracture": "none", "effusion": "left"}),
        ("No fracture, left lung clear.", {"fracture": "none"}),
        ("No fracture, effusion or pacemaker.", {"device": "none", "fracture": "none", "effusion": "none"}),
        ("Not only a left fracture but right effusion.", {"fracture": "left", "effusion": "right"}),
        ("Without fracture but with left effusion.", {"fracture": "none", "effusion": "left"}),
        ("The heart is not enlarged.", {"heart": "normal"}),
        ("Non-enlarged heart.", {"heart": "normal"}),
        ("No cardiomegaly.", {"heart": "normal"}),
        ("Heart enlarged, lungs normal.", {"heart": "enlarged"}),
        ("Heart is not normal.", {"heart": "enlarged"}),
        ("Lungs normal.", {}),
        ("HEART ENLARGED", {"heart": "enlarged"}),
        ("Knee: Kellgren-Lawrence grade III.", {"knee_grade": "3"}),
        ("Knee grade 2-3.", {}),
        ("Knee grade 2 or 3.", {}),
        ("Knee grade 3.5.", {}),
        ("Not knee grade 3.", {"knee_grade": "not 3"}),
        ("The border of the lesion is not irregular.", {"lesion_border": "regular"}),
        ("Frontal rather than oblique view.", {"view": "frontal"}),
        (
            "No pacemaker or left effusion; heart size is normal.",
            {"device": "none", "effusion": "not left", "heart": "normal"},
        ),
        ("未见左侧胸腔积液", {"effusion": "not left"}),
        ("左侧无积液，右侧可见积液。", {"effusion": "right"}),
        ("双侧胸腔未见积液。", {"effusion": "none"}),
        ("骨折、积液未见。", {"fracture": "none", "effusion": "none"}),
        ("未见骨折，左侧胸腔积液。", {"fracture": "none", "effusion": "left"}),
        ("未见骨折及胸腔积液。", {"fracture": "none", "effusion": "none"}),
        ("左侧锁骨完整，右侧锁骨骨折。", {"fracture": "right"}),
        ("心影不大。", {"heart": "normal"}),
        ("心脏未见明显增大。", {"heart": "normal"}),
        ("膝关节Ⅲ级。", {"knee_grade": "3"}),
        ("膝关节２级", {"knee_grade": "2"}),
        ("膝关节2-3级。", {}),
        ("边界并非不规则。", {"lesion_border": "regular"}),
        ("", {}),
    ],
)
def test_hard_wordings(text, findings):
    assert read_findings(text, LEXICON) == findings


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("Left fracture. No fracture.", "fracture"),
        ("Left clavicle fracture, left clavicle intact.", "fracture"),
        ("Heart size normal. Heart enlarged.", "heart"),
        ("Knee grade 2. Knee grade 3.", "knee_grade"),
        ("未见起搏器。可见起搏器。", "device"),
    ],
)
def test_two_values_for_one_finding_are_contradictory(text, finding):
    assert read_findings(text, LEXICON) == {finding: CONTRADICTORY}


CHEST, KNEE, SKIN = (load_lexicon(name) for name in ("chest", "knee", "skin"))


def test_a_statement_has_presence_side_and_severity():
    assert read_statements("Small left effusion cannot be excluded. Heart normal.", CHEST) == [
        Statement("effusion", "uncertain", None, "left", "mild"),
        Statement("cardiomegaly", "absent"),
    ]
    assert read_statements("Grade 3 on the left.", KNEE) == [Statement("knee_grade", "present", "3", "left")]
    assert str(Statement("knee_grade", "present", "3", "left")) == "knee_grade=3 present left"


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("Left effusion. Right effusion.", ["effusion present both"]),
        ("Left effusion. The effusion is small.", ["effusion present left mild"]),
        ("Small left effusion. Left effusion.", ["effusion present left mild"]),
        ("Possible effusion. Effusion.", ["effusion present"]),
        ("No definite effusion. A small effusion cannot be excluded.", ["effusion uncertain mild"]),
        ("Small effusion. Impression: moderate effusion.", ["effusion present moderate"]),
        ("No left effusion. No right effusion.", ["effusion absent"]),
        ("No effusion. No left effusion.", ["effusion absent"]),
        ("Left effusion, no right effusion.", ["effusion present left", "effusion absent right"]),
        ("No effusion on the left. Effusion.", ["effusion present", "effusion absent left"]),
        ("No effusion. Right effusion cannot be excluded.", ["effusion uncertain right"]),
        ("Effusion. No left effusion. No right effusion.", ["effusion contradictory"]),
        ("Left effusion. No effusion.", ["effusion contradictory"]),
        ("Effusion. Effusion.", ["effusion present"]),
    ],
)
def test_what_is_said_twice_is_one_statement(text, statements):
    assert [str(statement) for statement in read_statements(text, CHEST)] == statements


@pytest.mark.parametrize(
    ("text", "statements", "flat"),
    [
        (
            "Grade 2 left, grade 3 right.",
            ["knee_grade=2 present left", "knee_grade=3 present right"],
            "left 2, right 3",
        ),
        ("Grade 2. Grade 3.", ["knee_grade contradictory"], CONTRADICTORY),
        ("Grade 2. Grade 3 on the left.", ["knee_grade contradictory"], CONTRADICTORY),
        ("Grade 2 in both knees. Grade 2 on the left.", ["knee_grade=2 present both"], "both 2"),
        ("Grade 2. Not grade 2.", ["knee_grade contradictory"], CONTRADICTORY),
        ("Not grade 2.", ["knee_grade=2 absent"], "not 2"),
    ],
)
def test_grades_by_side(text, statements, flat):
    assert [str(statement) for statement in read_statements(text, KNEE)] == statements
    assert read_findings(text, KNEE) == {"knee_grade": flat}


def test_several_values_may_hold_at_once():
    text = "A black and brown mole, melanoma not excluded."
    assert [str(statement) for statement in read_statements(text, SKIN)] == [
        "diagnosis=nevus present",
        "diagnosis=melanoma uncertain",
        "colour=black present",
        "colour=brown present",
    ]
    assert read_findings(text, SKIN) == {"diagnosis": "melanoma, nevus", "colour": "black, brown"}


def test_what_is_uncertain_counts_as_stated_in_the_flat_reading():
    assert read_findings("Possible left effusion.", LEXICON) == {"effusion": "left"}
    assert read_findings("Effusion on the left?", LEXICON) == {"effusion": "left"}

"""What a sentence tells of a finding: negation, doubt, sides and severities, in words beside those of sentences/."""

import pytest

from medfinetune.evaluation.findings import read_statements
from medfinetune.evaluation.lexicon import load_lexicon

LEXICON = load_lexicon("chest")


def _read(text):
    return sorted(map(str, read_statements(text, LEXICON)))


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("Effusion without mass.", ["effusion present", "mass absent"]),
        ("未见肿块、结节，心影增大。", ["cardiomegaly present", "mass absent", "nodule absent"]),
        ("无肿块、有结节。", ["mass absent", "nodule present"]),
        ("未见肿块、心影正常。", ["cardiomegaly absent", "mass absent"]),
        ("肿块、结节未见。", ["mass absent", "nodule absent"]),
        ("密度不均匀肿块。", ["mass present"]),
        ("Effusion and a mass are absent.", ["effusion absent", "mass absent"]),
        ("Effusion, mass and nodule are not seen.", ["effusion absent", "mass absent", "nodule absent"]),
        ("Left effusion, mass not seen.", ["effusion present left", "mass absent"]),
        ("The heart is enlarged and effusion is absent.", ["cardiomegaly present", "effusion absent"]),
        ("Not without effusion.", ["effusion present"]),
        ("Non-displaced fracture.", ["fracture present"]),
    ],
)
def test_what_a_negation_reaches(text, statements):
    assert _read(text) == statements


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("Resolved right pneumothorax.", ["pneumothorax absent right"]),
        ("Resolved effusion, small pneumothorax.", ["effusion absent", "pneumothorax present mild"]),
        ("The pneumothorax has resolved.", ["pneumothorax absent"]),
        ("The pneumothorax has not resolved.", ["pneumothorax present"]),
        ("Left effusion has not completely resolved.", ["effusion present left"]),
        ("Partially resolved left effusion.", ["effusion present left"]),
        ("The effusion has nearly resolved.", ["effusion present"]),
        ("Resolving pneumonia.", ["pneumonia present"]),
        ("Cleared consolidation on the right.", ["consolidation absent right"]),
        ("右侧气胸已吸收。", ["pneumothorax absent right"]),
        ("右侧气胸未完全吸收。", ["pneumothorax present right"]),
        ("左侧积液未消失。", ["effusion present left"]),
    ],
)
def test_what_has_resolved_is_absent_and_what_has_not_is_there(text, statements):
    assert _read(text) == statements


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("No acute cardiopulmonary abnormality.", ["acute_abnormality absent"]),
        ("No acute process.", ["acute_abnormality absent"]),
        ("心肺未见明显异常。", ["acute_abnormality absent"]),
        ("纵隔未见异常。", []),
    ],
)
def test_the_words_of_a_normal_film(text, statements):
    assert _read(text) == statements


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("Mass and nodule cannot be excluded.", ["mass uncertain", "nodule uncertain"]),
        ("Mass or nodule is suspected.", ["mass uncertain", "nodule uncertain"]),
        ("Probable mass without effusion.", ["effusion absent", "mass uncertain"]),
        ("Possibly no effusion.", ["effusion uncertain"]),
        ("No suspicion of a mass.", ["mass absent"]),
        ("Consolidation suggesting pneumonia.", ["consolidation present", "pneumonia uncertain"]),
        ("肿块可能。", ["mass uncertain"]),
        ("可能无积液。", ["effusion uncertain"]),
        ("Mass?", ["mass uncertain"]),
        ("No mass?", ["mass absent"]),
    ],
)
def test_what_doubt_reaches(text, statements):
    assert _read(text) == statements


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("Small left and large right effusions.", ["effusion present left mild", "effusion present right severe"]),
        ("Small left and right effusions.", ["effusion present both mild"]),
        ("左侧、右侧少量积液。", ["effusion present both mild"]),
        ("Effusion on the left or pneumothorax.", ["effusion present left", "pneumothorax present"]),
        ("Pneumothorax or left effusion.", ["effusion present left", "pneumothorax present"]),
        ("Right effusion without pneumothorax.", ["effusion present right", "pneumothorax absent"]),
        ("Film of both sides: effusion on the right.", ["effusion present right"]),
        ("Left effusion, not on the right.", ["effusion absent right", "effusion present left"]),
        ("Left effusion, large.", ["effusion present left severe"]),
        ("Effusion (small) and mass.", ["effusion present mild", "mass present"]),
        ("Mass (severe): effusion.", ["effusion present", "mass present"]),
        ("Large mass or effusion.", ["effusion present", "mass present"]),
        ("No large effusion.", ["effusion absent"]),
    ],
)
def test_sides_and_severities(text, statements):
    assert _read(text) == statements


def test_what_was_once_is_not_stated():
    assert _read("History of pneumonia. 既往肺结核。") == []


def test_a_short_phrase_is_found_where_a_longer_one_only_begins():
    # The lexicon of skin knows 无痛性 as well as 无.
    assert list(map(str, read_statements("皮损无痛。", load_lexicon("skin")))) == ["pain absent"]

import json
from pathlib import Path

import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.answers import (
    answer_type,
    closed_open_accuracy,
    llava_med_answer,
    llava_med_closed,
    llava_med_recall,
    lmms_eval_answer,
    lmms_eval_correct,
)


def test_the_type_is_the_datasets_own_where_it_has_one():
    assert answer_type("yes", {"answer_type": "OPEN"}) == "open"
    assert answer_type("liver", {"answer_type": "CLOSED "}) == "closed"
    assert [answer_type(text) for text in ("Yes.", "no", "包含", "不包括", "Liver", "左肺")] == ["closed"] * 4 + [
        "open"
    ] * 2
    assert answer_type("yes", {"answer_type": ""}) == "closed"
    assert answer_type("liver", {}) == "open"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Yes! ", "yes"),
        ("是的。", "yes"),
        ("不包含", "no"),
        ("不正常", "no"),
        ("No (not seen)", "no"),
        ("没有（未见）", "no"),
        ("X-Ray", "xray"),
        ("Left lung, right lung", "left lung right lung"),
        ("Yes, it is.", "yes it is"),
        ("1.5", "1 5"),
    ],
)
def test_lmms_evals_answers(text, answer):
    assert lmms_eval_answer(text) == answer


def test_lmms_eval_wants_the_answer_and_nothing_else():
    assert lmms_eval_correct("包含", "是的")
    assert not lmms_eval_correct("No effusion is seen.", "No")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The Left Lung.", "left lung"),
        ("two kidneys, three", "2 kidneys 3"),
        ("T2-weighted", "t2 weighted"),
        ("x-ray - chest", "xray chest"),  # a mark beside a space anywhere is cut out everywhere
        ("1,000 (a)", "1000"),
        ("3.5 cm.", "3.5 cm"),
        ("None", "0"),
    ],
)
def test_llava_meds_answers(text, answer):
    assert llava_med_answer(text) == answer


def test_llava_med_finds_the_reference_anywhere():
    assert llava_med_closed("Yes, there is an effusion.", "yes")
    assert not llava_med_closed("There is an effusion.", "yes")
    assert llava_med_closed("The liver", "liver")
    assert llava_med_closed("Everything is normal", "no")  # its rule, not ours
    assert llava_med_closed("没有", "有")


def test_llava_meds_recall_by_hand():
    assert llava_med_recall("the left lung is white", "left lung") == 1.0
    assert llava_med_recall("left", "left upper lung") == pytest.approx(1 / 3)
    # A shared word counts as often as the prediction says it.
    assert llava_med_recall("left left", "left lung") == pytest.approx(2 / 3)
    assert llava_med_recall("", "left") == llava_med_recall("left", "") == 0.0
    assert llava_med_recall("左肺", "右肺", "zh") == 0.5


def test_all_figures_together():
    predictions = ["Yes", "No, it is not", "right lung", "肝脏"]
    references = ["yes", "no", "left lung", "肝脏"]
    figures = closed_open_accuracy(predictions, references, ["en", "en", "en", "zh"])
    assert figures == {
        "llava_med_closed_accuracy": 1.0,
        "llava_med_open_recall": 0.75,
        "lmms_eval_closed_accuracy": 0.5,
        "lmms_eval_open_accuracy": 0.5,
        "lmms_eval_accuracy": 0.5,
        "num_closed": 2,
        "num_open": 2,
    }
    as_open = closed_open_accuracy(predictions, references, answer_types=["open"] * 4)
    assert as_open["llava_med_closed_accuracy"] is None
    assert as_open["num_open"] == 4
    with pytest.raises(InputError, match="answers: 1 predictions, 4 references"):
        closed_open_accuracy(["yes"], references)


def test_slakes_right_answers_are_right_and_its_closed_ones_are_known(real_data: Path):
    """By both protocols; without the metadata, 85% of its closed questions would still be taken for such."""
    rows = json.loads((real_data / "slake" / "Slake1.0" / "test.json").read_text(encoding="utf-8"))
    answers, languages = [row["answer"] for row in rows], [row["q_lang"] for row in rows]
    types = [answer_type(row["answer"], row) for row in rows]
    figures = closed_open_accuracy(answers, answers, languages, types)
    assert (figures["num_closed"], figures["num_open"]) == (836, 1258)
    assert all(value == 1.0 for name, value in figures.items() if not name.startswith("num_"))
    told = [answer_type(answer) for answer in answers]
    closed = [i for i, kind in enumerate(types) if kind == "closed"]
    assert sum(told[i] == "closed" for i in closed) / len(closed) > 0.82
    assert sum(told[i] == "closed" for i, kind in enumerate(types) if kind == "open") < 0.02 * len(types)

import random

import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.finding_f1 import Counts, counts_of, finding_counts, finding_f1
from medfinetune.evaluation.findings import Statement, read_statements
from medfinetune.evaluation.lexicon import load_lexicon

CHEST, KNEE = load_lexicon("chest"), load_lexicon("knee")


def _numbers(prediction, reference, lexicon=CHEST):
    counts = finding_counts(prediction, reference, lexicon)
    return counts.num_right, counts.num_stated, counts.num_true


def test_counts_of_one_case():
    counts = finding_counts(
        "Small left effusion. Cardiomegaly. No fracture.", "Small left effusion. No cardiomegaly. Nodule.", CHEST
    )
    assert (counts.num_right, counts.num_stated, counts.num_true) == (1, 3, 3)
    assert counts.by_finding == {
        "effusion": (1, 1, 1),
        "cardiomegaly": (0, 1, 1),
        "fracture": (0, 1, 0),
        "nodule": (0, 0, 1),
    }
    assert counts.present == (1, 2, 2)


@pytest.mark.parametrize(
    ("prediction", "reference", "numbers"),
    [
        ("Left effusion.", "Left pleural effusion.", (1, 1, 1)),
        ("Left effusion.", "Right effusion.", (0, 1, 1)),
        ("Left effusion.", "Bilateral effusions.", (0, 1, 1)),
        ("Left effusion. Right effusion.", "Bilateral effusions.", (1, 1, 1)),
        ("Effusion.", "No effusion.", (0, 1, 1)),
        ("Effusion.", "Possible effusion.", (0, 1, 1)),
        ("Small effusion.", "Large effusion.", (0, 1, 1)),
        ("Effusion.", "Large effusion.", (0, 1, 1)),
        ("未见积液。", "No effusion.", (1, 1, 1)),
        ("", "No effusion.", (0, 0, 1)),
        ("No effusion.", "", (0, 1, 0)),
        ("Thank you.", "", (0, 0, 0)),
    ],
)
def test_all_that_a_statement_holds_must_agree(prediction, reference, numbers):
    assert _numbers(prediction, reference) == numbers


def test_a_contradictory_reference_tells_no_truth_and_a_contradictory_prediction_is_wrong():
    twice = "Left effusion. No effusion."
    assert _numbers(f"{twice} Nodule.", f"{twice} Nodule.") == (1, 1, 1)
    assert _numbers("Left effusion.", twice) == (0, 0, 0)
    assert _numbers(twice, "Left effusion.") == (0, 1, 1)
    assert _numbers(twice, "") == (0, 1, 0)


def test_counts_agree_with_a_plain_loop():
    rng = random.Random(0)
    every = [
        Statement(finding, presence, None, side)
        for finding in ("effusion", "nodule", "mass")
        for presence in ("present", "absent", "uncertain")
        for side in (None, "left")
    ]
    for _ in range(200):
        said, true = rng.sample(every, rng.randrange(7)), rng.sample(every, rng.randrange(7))
        right = sum(1 for one in said for other in true if str(one) == str(other))
        counts = counts_of(said, true)
        assert (counts.num_right, counts.num_stated, counts.num_true) == (right, len(said), len(true))
        assert tuple(map(sum, zip((0, 0, 0), *counts.by_finding.values(), strict=True))) == (
            right,
            len(said),
            len(true),
        )


def test_f1_is_micro_over_cases():
    predictions = ["Left effusion. No fracture.", "心影增大。", "Nodule."]
    references = ["Left effusion. Fracture.", "心影增大。未见积液。", "No opinion."]
    result = finding_f1(predictions, references, CHEST, ["en", "zh", "en"])
    assert (result["num_right"], result["num_stated"], result["num_true"]) == (2, 4, 4)
    assert (result["finding_f1"], result["precision"], result["recall"]) == (0.5, 0.5, 0.5)
    # Present: effusion right; fracture missed; cardiomegaly right; nodule invented.
    assert result["finding_f1_present"] == 2 * 2 / (3 + 3)
    assert result["num_references_without_findings"] == 1
    assert result["by_language"]["zh"] == {
        "finding_f1": pytest.approx(2 / 3),
        "precision": 1.0,
        "recall": 0.5,
        "num_right": 1,
        "num_stated": 1,
        "num_true": 2,
        "finding_f1_present": 1.0,
    }
    assert result["by_finding"]["nodule"] == {
        "finding_f1": 0.0,
        "precision": 0.0,
        "recall": None,
        "num_right": 0,
        "num_stated": 1,
        "num_true": 0,
    }
    assert result["by_finding"]["hernia"]["finding_f1"] is None
    total = [sum(row[key] for row in result["by_finding"].values()) for key in Counts._fields]
    assert total == [result[key] for key in Counts._fields]


def test_where_nothing_is_stated_there_is_no_figure():
    for texts in ([], ["Thank you."]):
        result = finding_f1(texts, texts, CHEST)
        assert result["finding_f1"] is result["precision"] is result["recall"] is None
        assert result["finding_f1_present"] is None
    assert finding_f1(["No effusion."], ["No effusion."], CHEST)["finding_f1_present"] is None


def test_saying_everything_does_not_pay():
    reference = "Kellgren-Lawrence grade 2. Definite osteophytes."
    everything = " ".join(f"Grade {grade}." for grade in range(5)) + " Osteophytes. No effusion. Fracture."
    assert _numbers(everything, reference, KNEE) == (1, 4, 2)


def test_texts_that_are_read_already_give_the_same():
    prediction, reference = "Left effusion, possible mass.", "Left effusion, no mass."
    read = [read_statements(text, CHEST) for text in (prediction, reference)]
    assert counts_of(*read) == finding_counts(prediction, reference, CHEST)


def test_unequal_lists_are_refused():
    with pytest.raises(InputError, match="2 predictions for 1 references"):
        finding_f1(["a", "b"], ["a"], CHEST)
    with pytest.raises(InputError, match="finding F1"):
        finding_f1(["a"], ["a"], CHEST, ["en", "zh"])

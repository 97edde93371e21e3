import pytest
import torch
from torch.nn import functional as F

from medfinetune.evaluation import embedded, encoder_suite
from medfinetune.evaluation.encoder_suite import SuiteOptions, evaluate_encoder
from medfinetune.evaluation.tasks import Task

TASKS = [Task("side", {"left": {"": ["all left"]}, "right": {"": ["all right"]}})]


def _unit(*numbers):
    return F.normalize(torch.stack([_direction(number) for number in numbers]), dim=-1)


def _direction(number):
    # Each case its own direction, and a little of its side's.
    direction = torch.zeros(24)
    direction[number] = 1
    direction[22 + number % 2] = 0.5
    return direction


def _embed_images(model, processor, images, batch_size):
    return _unit(*(image.getpixel((0, 0))[0] for image in images))


def _embed_texts(model, processor, texts, batch_size):
    table = {"all left": 20, "all right": 21}
    numbers = [table[text] if text in table else int("".join(filter(str.isdigit, text))) for text in texts]
    return _unit(*numbers)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(embedded, "embed_images", _embed_images)
    monkeypatch.setattr(encoder_suite, "embed_texts", _embed_texts)
    model = torch.nn.Linear(2, 3)
    model.register_buffer("logit_scale", torch.zeros(1))
    model.register_buffer("logit_bias", torch.zeros(1))
    return model


def test_a_perfect_encoder_scores_1_and_its_control_falls(model, pairs):
    result = evaluate_encoder(model, None, pairs, TASKS, options=SuiteOptions(pool_size=8))
    assert result["recall_at_1_among_8"] == {"en": 1.0, "zh": 1.0}
    assert result["recall_at_1_among_8_shuffled_image"] == {"en": 0.0, "zh": 0.0}
    assert result["recall_pools"]["en"]["num_pools"] == 2
    assert result["recall_pools"]["en"]["num_cases"] == 20
    assert result["recall_pools"]["zh"]["text_to_image"] == 1.0
    assert result["recall_at_1_chance"]["en"] == 1 / 8
    assert result["recall"]["recall_at_1"] == 1.0
    assert result["recall_shuffled_image"]["recall_at_1"] == 0.0
    assert (result["num_pairs"], result["num_images"], result["num_parameters"]) == (40, 20, 9)
    assert result["zero_shot_accuracy"] == 1.0
    assert result["zero_shot_chance"] == result["zero_shot_majority"] == 0.5
    assert 0.1 < result["zero_shot_accuracy_shuffled_image"] < 0.9
    assert result["zero_shot_by_attribute"]["side"]["num_images"] == 20


def test_fewer_cases_than_a_pool_name_their_own_size(model, pairs):
    result = evaluate_encoder(model, None, pairs, options=SuiteOptions(pool_size=64))
    assert result["recall_at_1_among_20"] == {"en": 1.0, "zh": 1.0}
    assert "recall_at_1_among_64" not in result
    assert "zero_shot_accuracy" not in result


def test_one_image_cannot_be_shuffled_and_that_is_said(model, pairs):
    result = evaluate_encoder(model, None, pairs.select([0, 1]), TASKS)
    assert "one image belongs to 2 of 2 cases" in result["no_shuffled_image"]
    assert not any(key.endswith("_shuffled_image") for key in result if key != "no_shuffled_image")


@pytest.fixture
def splits(pairs):
    """Training, validation and test rows: every second image of the others, and its own directions again."""
    known = ["label", "source", "patient_id"]
    plain = pairs.remove_columns(known)
    for name in known:
        values = {"label": [("L", "R")[i // 2 % 2] for i in range(40)], "source": ["knee"] * 40}
        plain = plain.add_column(name, values.get(name, [f"p{i // 4}" for i in range(40)]))
    by_image = {name: [i for i in range(40) if i // 2 in numbers] for name, numbers in NUMBERS.items()}
    return {name: plain.select(rows) for name, rows in by_image.items()}


NUMBERS = {"train": range(8), "validation": range(8, 12), "test": range(12, 20)}
LABELLED = Task(
    "side",
    {value: {"en": [text], "zh": [text]} for value, text in (("L", "all left"), ("R", "all right"))},
    truth="label",
    sources=("knee",),
    ordered=True,
)


def test_neighbours_probe_and_calibration_of_a_perfect_encoder(model, splits):
    options = SuiteOptions(pool_size=4, num_resamples=50, num_pictures=3)
    result = evaluate_encoder(
        model, None, splits["test"], [LABELLED], splits["train"], splits["validation"], options=options
    )
    for figures in (
        result["zero_shot_by_attribute"]["side"],
        result["zero_shot_by_attribute"]["side"]["by_language"]["zh"],
        result["knn_by_attribute"]["side"]["1"],
        result["knn_by_attribute"]["side"]["5"],
        result["linear_probe_by_attribute"]["side"],
    ):
        for name in ("accuracy", "balanced_accuracy", "auc", "kappa"):
            assert figures[name] == 1.0, name
            assert figures[f"{name}_ci"] == [1.0, 1.0]
            assert figures[f"{name}_shuffled_image"] < 0.8
        assert figures["confusion"] == [[4, 0], [0, 4]]
    assert result["knn_by_attribute"]["side"]["20"]["accuracy"] == 1.0  # 4 votes against 4: the nearer win
    probe = result["linear_probe_by_attribute"]["side"]
    assert (probe["num_training_images"], probe["num_validation_images"]) == (8, 4)
    assert result["num_clusters"] == 4
    assert result["zero_shot_balanced_accuracy"] == 1.0
    calibration = result["calibration"]
    assert calibration["match"]["num_matched"] == 16
    assert calibration["match"]["refitted"]["brier"] < calibration["match"]["as_trained"]["brier"]
    side = calibration["classes_by_attribute"]["side"]
    assert side["refitted"]["brier"] < side["as_trained"]["brier"]
    assert (side["num_images"], side["num_validation_images"]) == (8, 4)
    shown = result["neighbours_by_attribute"]["side"]
    assert [row["label"] for row in shown] in (["L", "R", "L"], ["R", "L", "R"], ["L", "R", "R"])
    for row in shown:
        assert len(row["neighbours"]) == 5
        cosines = [neighbour["cosine"] for neighbour in row["neighbours"]]
        assert cosines == sorted(cosines, reverse=True)
        assert all(n["right"] == (n["label"] == row["label"]) for n in row["neighbours"])
        assert row["neighbours"][0]["right"]


def test_leaked_patients_and_pixels_are_no_neighbours(model, splits):
    result = evaluate_encoder(model, None, splits["train"], [LABELLED], splits["train"])
    numbers = {f"case-{n}-{language}": n for n in range(8) for language in ("en", "zh")}
    for row in result["neighbours_by_attribute"]["side"]:
        # Two images of each patient: those of the others are left.
        shown = [numbers[neighbour["id"]] for neighbour in row["neighbours"]]
        assert len(shown) == 5
        assert all(number // 2 != numbers[row["id"]] // 2 for number in shown)


def test_without_other_splits_nothing_is_learned(model, splits):
    result = evaluate_encoder(model, None, splits["test"], [LABELLED])
    assert "knn_by_attribute" not in result
    assert "linear_probe_by_attribute" not in result
    assert "refitted" not in result["calibration"]["match"]
    assert "refitted" not in result["calibration"]["classes_by_attribute"]["side"]
    few = evaluate_encoder(
        model, None, splits["test"], [LABELLED], splits["train"], options=SuiteOptions(max_training_images=3)
    )
    assert few["knn_by_attribute"]["side"]["1"]["num_training_images"] == 3
    none = evaluate_encoder(
        model, None, splits["test"], [LABELLED], splits["train"], options=SuiteOptions(max_training_images=0)
    )
    assert "knn_by_attribute" not in none


def test_training_labels_alone_decide_what_is_learned(model, splits):
    """Exchanged training labels turn neighbours and probe round and leave the prompts alone."""
    exchanged = splits["train"].map(lambda row: {"label": {"L": "R", "R": "L"}[row["label"]]})
    result = evaluate_encoder(model, None, splits["test"], [LABELLED], exchanged, splits["validation"])
    assert result["zero_shot_by_attribute"]["side"]["accuracy"] == 1
    assert result["knn_by_attribute"]["side"]["1"]["accuracy"] == 0
    assert result["knn_by_attribute"]["side"]["1"]["kappa"] == -1

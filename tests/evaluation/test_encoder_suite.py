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

"""Labels with probabilities that hold."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medfinetune.evaluation.tasks import Task
from medfinetune.inference.labels import LabelTask, calibrated_task

TASK = Task("side", {"left": {"en": ["Left.", "Left too."]}, "right": {"en": ["Right."]}}, sources=("reports",))
PROMPTS = {"Left.": [1.0, 0.0, 0.0], "Left too.": [1.0, 0.0, 0.0], "Right.": [0.0, 1.0, 0.0]}


def embed_texts(texts):
    return torch.tensor([PROMPTS[text] for text in texts])


class Split:
    """As `EmbeddedSplit`: images that lie at their class's prompt three times of four."""

    def __init__(self, num):
        random = np.random.default_rng(0)
        classes = random.integers(2, size=num)
        seen = np.where(random.random(num) < 0.75, classes, 1 - classes)
        self.embeds = F.normalize(torch.eye(3)[seen] + 0.1, dim=1)
        self._truths = (np.arange(num), classes)

    def truths(self, task):
        return self._truths


def nll(task, split):
    _, truths = split.truths(None)
    stated = [label.probabilities for label in task.evidence(split.embeds)]
    return -np.mean([np.log(max(1e-6, p[TASK.values[t]])) for p, t in zip(stated, truths, strict=True)])


def test_scale_and_bias_are_fitted_on_the_validation_split():
    split = Split(400)
    trained = calibrated_task(TASK, embed_texts, ["en"], 20.0, -10.0)
    fitted = calibrated_task(TASK, embed_texts, ["en"], 20.0, -10.0, split)
    assert (trained.num_truths, trained.scale, trained.bias) == (0, 20.0, -10.0)
    assert fitted.num_truths == 400
    assert nll(fitted, split) < nll(trained, split) - 0.1
    # Right three times of four, it says so.
    assert np.mean([label.probability for label in fitted.evidence(split.embeds)]) == pytest.approx(0.75, abs=0.05)


def test_too_few_truths_leave_the_encoder_as_it_is():
    assert calibrated_task(TASK, embed_texts, ["en"], 20.0, -10.0, Split(9)).num_truths == 0
    assert calibrated_task(TASK, embed_texts, ["en"], 20.0, -10.0, Split(10)).num_truths == 10


def test_it_comes_back_from_json():
    task = calibrated_task(TASK, embed_texts, ["en"], 20.0, -10.0, Split(40))
    again = LabelTask.from_dict(task.to_dict(), task.class_embeds)
    assert again.evidence(Split(3).embeds) == task.evidence(Split(3).embeds)

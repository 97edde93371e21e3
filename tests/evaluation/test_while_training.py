import json

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from medfinetune.errors import InputError
from medfinetune.evaluation.tasks import Task
from medfinetune.evaluation.while_training import ZeroShotGrader

TASK = Task("grade", {str(n): {"en": [f"en {n}"], "zh": [f"zh {n}"]} for n in range(3)}, "label", ("knee",), True)


def known(labels):
    """Rows of other images first, and in another order than the embedded ones."""
    rows = [("reports", "9", "other"), *(("knee", label, key) for key, label in reversed(labels.items()))]
    return {
        "id": [f"row {i}" for i in range(len(rows))],
        "source": [source for source, _, _ in rows],
        "label": [label for _, label, _ in rows],
        "metadata": [json.dumps({})] * len(rows),
        "pixel_sha256": [[key] for _, _, key in rows],
    }


def test_each_image_is_graded_once_by_its_own_embedding():
    keys = ["other", "a", "a", "b", "c", "c", "d", "unlabelled"]
    labels = {"a": "0", "b": "1", "c": "2", "d": "2"}
    classes = torch.eye(3)
    stated = [0, 0, 0, 1, 1, 1, 2, 1]  # of each row; c is taken for 1
    asked = []

    def embed(texts):
        asked.extend(texts)
        return classes[[int(text[-1]) for text in texts]]

    grader = ZeroShotGrader([TASK], keys, ["en"] * 8, known(labels))
    figures = grader.figures(classes[stated], embed, 5.0, -3.0)
    assert asked == ["en 0", "en 1", "en 2"]
    assert figures.keys() == {f"grade_{name}" for name in ("accuracy", "balanced_accuracy", "auc", "kappa")}
    assert figures["grade_accuracy"] == 3 / 4
    assert figures["grade_balanced_accuracy"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert figures["grade_kappa"] == pytest.approx(cohen_kappa_score([0, 1, 2, 2], [0, 1, 1, 2], weights="quadratic"))
    assert np.isfinite(figures["grade_auc"])


def test_labels_of_other_images_are_no_truth():
    with pytest.raises(InputError, match="task grade: no validation image has a label"):
        ZeroShotGrader([TASK], ["x", "y"], ["en", "en"], known({"a": "0"}))

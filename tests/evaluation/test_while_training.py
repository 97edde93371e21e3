import json
import math

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional as F

from medfinetune.encoder.labels import group_ids_of
from medfinetune.errors import InputError
from medfinetune.evaluation.probes import label_knn_accuracy
from medfinetune.evaluation.tasks import Task
from medfinetune.evaluation.while_training import EvaluatedRows, read_known_tasks

TASK = Task("grade", {str(n): {"en": [f"en {n}"], "zh": [f"zh {n}"]} for n in range(3)}, "label", ("knee",), True)


def rows_of(keys, labels, source="knee"):
    columns = {
        "id": [f"row {i}" for i in range(len(keys))],
        "text": [f"text {i}" for i in range(len(keys))],
        "language": ["en"] * len(keys),
        "source": [source] * len(keys),
        "label": labels,
        "metadata": [json.dumps({})] * len(keys),
        "pixel_sha256": [[key] for key in keys],
    }
    return datasets.Dataset.from_dict(columns)


def test_each_image_is_graded_once_by_its_own_embedding():
    keys = ["other", "a", "a", "b", "c", "c", "d", "unlabelled"]
    labels = [None, None, "0", "1", "2", "2", "2", None]
    classes = torch.eye(3)
    stated = [0, 0, 0, 1, 1, 1, 2, 1]  # of each row; c is taken for 1
    asked = []

    def embed(texts):
        asked.extend(texts)
        return classes[[int(text[-1]) for text in texts]]

    found = EvaluatedRows(rows_of(keys, labels), [TASK]).figures(classes[stated], classes[stated], embed, 5.0, -3.0)
    assert asked == ["en 0", "en 1", "en 2"]
    figures = {name: value for name, value in found.items() if name.startswith("grade_")}
    assert figures.keys() == {f"grade_{name}" for name in ("accuracy", "balanced_accuracy", "auc", "kappa")}
    assert figures["grade_accuracy"] == 3 / 4
    assert figures["grade_balanced_accuracy"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert figures["grade_kappa"] == pytest.approx(cohen_kappa_score([0, 1, 2, 2], [0, 1, 1, 2], weights="quadratic"))
    assert np.isfinite(figures["grade_auc"])


def test_of_several_sets_one_must_know_a_task(tmp_path):
    path = tmp_path / "grade.yaml"
    path.write_text('{task: grade, sources: [knee], classes: {"0": ["none"], "1": ["some"]}}')
    knee, reports = rows_of(["a", "b"], ["0", "1"]), rows_of(["c", "d"], ["0", "1"], "reports")
    tasks = read_known_tasks(str(path), [reports, knee])
    with pytest.raises(InputError, match="task grade: no pair of the sources knee has a label"):
        read_known_tasks(str(path), [reports])
    eye = torch.eye(2)
    found = EvaluatedRows(reports, tasks).figures(eye, eye, lambda texts: pytest.fail("asked in vain"), 5.0, -3.0)
    assert not [name for name in found if name.startswith("grade")]
    assert read_known_tasks(None, [reports]) == []


def test_calibration_is_of_pairs_that_match_and_ones_that_do_not():
    """At scale 0 and bias 0 every pair is called 50% likely, and half of them match."""
    rows, eye = EvaluatedRows(rows_of(list("abcd"), list("0123"))), torch.eye(4)
    assert rows.figures(eye, eye, None, 0.0, 0.0)["ece"] == pytest.approx(0)
    assert rows.figures(eye, eye, None, 0.0, 20.0)["ece"] == pytest.approx(0.5)
    # Cosine 1 where they match and 0 where not.
    assert rows.figures(eye, eye, None, 40.0, -20.0)["ece"] == pytest.approx(0, abs=1e-6)
    alone = EvaluatedRows(rows_of(["a"], ["0"])).figures(eye[:1], eye[:1], None, 1.0, 0.0)
    assert not {"ece", "knn_accuracy"} & alone.keys()


def reference_knn(embeds, rows, k):
    """Image by image, as the docstring reads; of equal votes the nearer win."""
    hits, asked = 0, 0
    first = {}
    for i, row in enumerate(rows):
        if row["label"] and row["task"] != "question":
            first.setdefault(row["key"], i)
    for i in first.values():
        others = [
            j
            for j in first.values()
            if j != i
            and rows[j]["source"] == rows[i]["source"]
            and not (rows[j]["patient"] and rows[j]["patient"] == rows[i]["patient"])
        ]
        near = sorted(others, key=lambda j: -float(embeds[i] @ embeds[j]))[:k]
        votes = {}
        for j in near:
            cosine = float(embeds[i] @ embeds[j])
            votes[rows[j]["label"]] = votes.get(rows[j]["label"], 0) + 1 + (cosine + 1) / 2 / (k + 1)
        if near:
            asked += 1
            hits += max(votes, key=votes.get) == rows[i]["label"]
    return hits / asked


@pytest.mark.parametrize("seed", range(5))
def test_nearest_neighbours_against_a_plain_loop(seed):
    random = np.random.default_rng(seed)
    rows = [
        {
            "key": f"image {random.integers(25)}",
            "label": random.choice(["1", "2", "3", ""]),
            "task": random.choice(["caption", "caption", "question"]),
        }
        for _ in range(60)
    ]
    for row in rows:  # of one image, all rows say the same
        number = int(row["key"].split()[1])
        row |= {"source": ["knee", "reports"][number % 2], "patient": f"p{number // 4}" if number < 12 else None}
    generator = torch.Generator().manual_seed(seed)
    by_key = {f"image {i}": F.normalize(torch.randn(4, generator=generator), dim=0) for i in range(25)}
    embeds = torch.stack([by_key[row["key"]] for row in rows])
    columns = {
        "pixel_sha256": [[row["key"]] for row in rows],
        "text": [str(i) for i in range(60)],
        "label": [row["label"] for row in rows],
        "patient_id": [row["patient"] for row in rows],
        "source": [row["source"] for row in rows],
        "task": [row["task"] for row in rows],
    }
    found = label_knn_accuracy(embeds, group_ids_of(columns), columns["source"])
    assert math.isclose(found, reference_knn(embeds, rows, 5))


def test_a_set_that_does_not_say_what_its_rows_are_is_refused():
    rows = rows_of(["a", "b"], ["0", "1"])
    with pytest.raises(InputError, match="eval_dataset: the rows have no column language"):
        EvaluatedRows(rows.remove_columns("language"))
    with pytest.raises(InputError, match="eval_dataset: a Subset does not say what its rows are"):
        EvaluatedRows(torch.utils.data.Subset(rows, [0]))

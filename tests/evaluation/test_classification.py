import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from medfinetune.evaluation.classification import grade_figures


def drawn(num_classes, size=60, seed=0):
    rng = np.random.default_rng(seed)
    truths = rng.integers(num_classes, size=size)
    probabilities = rng.dirichlet(np.ones(num_classes), size)
    probabilities[np.arange(size), truths] += 0.4 * rng.random(size)
    return probabilities / probabilities.sum(axis=1, keepdims=True), truths


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_figures_are_those_of_scikit_learn(num_classes):
    probabilities, truths = drawn(num_classes)
    predicted = probabilities.argmax(axis=1)
    figures = grade_figures(probabilities, truths, ordered=True)
    assert figures["accuracy"] == np.mean(predicted == truths)
    assert math.isclose(figures["balanced_accuracy"], balanced_accuracy_score(truths, predicted))
    assert math.isclose(figures["kappa"], cohen_kappa_score(truths, predicted, weights="quadratic"))
    given = probabilities[:, 1] if num_classes == 2 else probabilities
    assert math.isclose(figures["auc"], roc_auc_score(truths, given, multi_class="ovr", average="macro"))
    assert figures["chance"] == 1 / num_classes
    assert figures["majority"] == np.bincount(truths).max() / len(truths)
    assert (figures["num_images"], figures["num_classes"]) == (60, num_classes)
    for true in range(num_classes):
        for stated in range(num_classes):
            assert figures["confusion"][true][stated] == np.sum((truths == true) & (predicted == stated))


def test_kappa_against_the_formula():
    probabilities, truths = drawn(5, seed=3)
    predicted = probabilities.argmax(axis=1)
    seen = sum((p - t) ** 2 for p, t in zip(predicted, truths, strict=True)) / 60
    by_chance = sum((p - t) ** 2 for p in predicted for t in truths) / 60**2
    assert math.isclose(grade_figures(probabilities, truths, ordered=True)["kappa"], 1 - seen / by_chance)
    assert "kappa" not in grade_figures(probabilities, truths)


def test_classes_that_do_not_occur_are_left_out():
    probabilities, truths = drawn(5)
    truths = np.where(truths == 4, 0, truths)
    figures = grade_figures(probabilities, truths, ordered=True)
    areas = [roc_auc_score(truths == number, probabilities[:, number]) for number in range(4)]
    assert math.isclose(figures["auc"], np.mean(areas))
    predicted = probabilities.argmax(axis=1)
    recalls = [np.mean(predicted[truths == number] == number) for number in range(4)]
    assert math.isclose(figures["balanced_accuracy"], np.mean(recalls))


@pytest.mark.filterwarnings("error")
def test_figures_that_do_not_exist_are_nan():
    one = grade_figures(np.tile([0.6, 0.3, 0.1], (4, 1)), np.zeros(4, dtype=int), ordered=True)
    assert one["accuracy"] == one["balanced_accuracy"] == one["majority"] == 1
    assert math.isnan(one["auc"])
    assert math.isnan(one["kappa"])
    broken = grade_figures(np.full((4, 3), np.nan), np.array([0, 1, 2, 1]))
    assert math.isnan(broken["auc"])


def test_a_constant_answer_is_no_better_than_chance():
    truths = np.array([0] * 8 + [1] * 2)
    figures = grade_figures(np.tile([0.9, 0.1], (10, 1)), truths, ordered=True)
    assert figures["accuracy"] == figures["majority"] == 0.8
    assert figures["balanced_accuracy"] == figures["auc"] == 0.5
    assert figures["kappa"] == 0


def test_answers_may_be_given_beside_the_probabilities():
    probabilities, truths = drawn(3)
    assert grade_figures(probabilities, truths, predicted=truths)["accuracy"] == 1

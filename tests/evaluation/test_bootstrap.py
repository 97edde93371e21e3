import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medfinetune.evaluation.bootstrap import Bootstrap, confusion_figures, weighted_auc
from medfinetune.evaluation.classification import grade_figures
from tests.evaluation.test_classification import drawn

PATIENTS = [f"p{i // 3 if i < 30 else i}" for i in range(60)]  # ten patients of three images, thirty of one


def resamples(bootstrap, clusters):
    """Row numbers of each resample, in plain loops."""
    names = list(dict.fromkeys(clusters))
    for counts in bootstrap.counts:
        rows = []
        for name, count in zip(names, counts, strict=True):
            rows += [i for i, cluster in enumerate(clusters) if cluster == name] * int(count)
        yield np.array(rows)


def limits(values):
    return np.percentile([value for value in values if not math.isnan(value)], [2.5, 97.5])


def test_whole_patients_are_drawn_as_many_as_there_are():
    bootstrap = Bootstrap(PATIENTS, 50, seed=1)
    assert bootstrap.num_clusters == 40
    assert bootstrap.counts.shape == (50, 40)
    assert (bootstrap.counts.sum(axis=1) == 40).all()
    assert not np.array_equal(bootstrap.counts[0], bootstrap.counts[1])
    assert np.array_equal(bootstrap.counts, Bootstrap(PATIENTS, 50, seed=1).counts)
    assert not np.array_equal(bootstrap.counts, Bootstrap(PATIENTS, 50, seed=2).counts)


def test_means_against_plain_resampling():
    values = np.random.default_rng(0).random(60)
    bootstrap = Bootstrap(PATIENTS, 40)
    expected = [values[rows].mean() for rows in resamples(bootstrap, PATIENTS)]
    np.testing.assert_allclose(bootstrap.means(values), expected)
    np.testing.assert_allclose(bootstrap.interval(bootstrap.means(values)), limits(expected))
    some = [1, 4, 5, 33, 59]
    expected = [
        np.mean([values[row] for row in rows if row in some]) if set(rows) & set(some) else math.nan
        for rows in resamples(bootstrap, PATIENTS)
    ]
    np.testing.assert_allclose(bootstrap.means(values[some], some), expected)


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("digits", [1, 9])
def test_grades_against_plain_resampling(num_classes, digits):
    probabilities, truths = drawn(num_classes)
    probabilities = probabilities.round(digits)  # with ties
    bootstrap = Bootstrap(PATIENTS, 80)
    figures = [grade_figures(probabilities[rows], truths[rows], True) for rows in resamples(bootstrap, PATIENTS)]
    found = bootstrap.grades(probabilities, truths, True)
    assert set(found) == {"accuracy", "balanced_accuracy", "auc", "kappa"}
    for name, interval in found.items():
        np.testing.assert_allclose(interval, limits([figure[name] for figure in figures]), err_msg=name)
    assert "kappa" not in bootstrap.grades(probabilities, truths)


def test_many_areas_at_once_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(8, size=50) / 8, rng.random(50) < 0.4
    weights = rng.integers(4, size=(6, 50)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=weight) for weight in weights]
    np.testing.assert_allclose(weighted_auc(scores, positive, weights), expected)
    assert np.isnan(weighted_auc(scores, positive, positive[None].astype(float)))


def test_confusion_figures_of_one_class_are_nan_only_where_they_must_be():
    figures = confusion_figures(np.array([[[3.0, 0], [0, 0]], [[2, 1], [0, 1]]]))
    assert np.isnan(figures["kappa"][0])
    assert figures["balanced_accuracy"].tolist() == pytest.approx([1, (2 / 3 + 1) / 2])


def test_patients_widen_the_interval_and_one_patient_has_none():
    values = np.repeat(np.random.default_rng(0).random(20) < 0.5, 10).astype(float)
    widths = []
    for clusters in (range(200), [i // 10 for i in range(200)]):
        bootstrap = Bootstrap(list(clusters), 500)
        low, high = bootstrap.interval(bootstrap.means(values))
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]
    one = Bootstrap(["p"] * 5, 100)
    assert all(math.isnan(limit) for limit in one.interval(one.means(np.ones(5))))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        values = (np.random.default_rng(seed).random(80) < 0.3).astype(float)
        bootstrap = Bootstrap(range(80), 300, seed)
        low, high = bootstrap.interval(bootstrap.means(values))
        covered += low <= 0.3 <= high
    assert 0.88 < covered / 200 < 0.99

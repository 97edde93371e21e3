import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from torch.nn import functional as F

from medfinetune.evaluation.calibration import (
    class_figures,
    expected_calibration_error,
    fit_classes,
    fit_match,
    match_figures,
    refitted_probabilities,
)


def drawn(size=400, scale=8.0, bias=-2.0):
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.2, 0.3, size).clip(-1, 1)
    return cosines, rng.random(size) < expit(scale * cosines + bias)


@pytest.mark.parametrize("size", [15, 60, 137, 1000])
def test_error_against_plain_bins_of_equal_mass(size):
    rng = np.random.default_rng(size)
    probabilities = rng.random(size)
    happened = rng.random(size) < probabilities**2
    order = sorted(range(size), key=lambda i: probabilities[i])
    expected = 0.0
    for number in range(15):
        rows = [row for place, row in enumerate(order) if place * 15 // size == number]
        gap = np.mean([probabilities[row] for row in rows]) - np.mean([happened[row] for row in rows])
        expected += len(rows) / size * abs(gap)
    assert math.isclose(expected_calibration_error(probabilities, happened), expected)
    # 60 rows make 15 bins of exactly 4.
    if size % 15 == 0:
        gaps = (probabilities - happened)[order].reshape(15, -1).mean(axis=1)
        assert math.isclose(expected, np.abs(gaps).mean())


def test_equal_probabilities_are_one_bin_whatever_the_order():
    happened = np.arange(100) < 50
    assert expected_calibration_error(np.full(100, 0.5), happened) == 0
    assert math.isclose(expected_calibration_error(np.full(100, 0.9), happened), 0.4)
    assert math.isclose(expected_calibration_error(np.full(100, 0.9), happened[::-1]), 0.4)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1


def test_brier_is_that_of_scikit_learn():
    cosines, matched = drawn()
    probabilities = expit(3 * cosines)
    assert math.isclose(match_figures(3 * cosines, matched)["brier"], brier_score_loss(matched, probabilities))
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    truths = np.arange(50) % 4
    expected = sum((shares[i, c] - (truths[i] == c)) ** 2 for i in range(50) for c in range(4)) / 50
    figures = class_figures(shares, truths)
    assert math.isclose(figures["brier"], expected)
    best = shares.max(axis=1)
    right = shares.argmax(axis=1) == truths
    assert figures["expected_calibration_error"] == expected_calibration_error(best, right)


@pytest.mark.parametrize("start", [(10.0, -10.0), (118.0, -12.7), (1.0, 0.0)])
def test_fit_is_the_logistic_regression_of_matches_on_cosines(start):
    cosines, matched = drawn()
    scale, bias = fit_match(cosines, matched, *start)
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000).fit(cosines[:, None], matched)
    assert math.isclose(scale, reference.coef_[0, 0], rel_tol=1e-3)
    assert math.isclose(bias, reference.intercept_[0], rel_tol=1e-3)
    before = match_figures(start[0] * cosines + start[1], matched)
    after = match_figures(scale * cosines + bias, matched)
    assert after["expected_calibration_error"] < min(0.08, before["expected_calibration_error"])
    assert after["brier"] < before["brier"]


def test_pairs_that_a_threshold_parts_get_a_finite_scale():
    scale, bias = fit_match(np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, False, True, True]), 10.0, -10.0)
    assert 0 < scale <= 10_000
    assert math.isfinite(bias)
    assert expit(scale * 0.4 + bias) > 0.99 > 0.01 > expit(scale * 0.1 + bias)


def test_a_model_that_points_the_wrong_way_keeps_a_positive_scale():
    cosines, matched = drawn()
    scale, bias = fit_match(cosines, ~matched, 10.0, -10.0)
    assert scale > 0
    assert math.isclose(expit(scale * cosines + bias).mean(), (~matched).mean(), abs_tol=0.01)


def test_class_fit_has_the_least_log_loss_around():
    generator = torch.Generator().manual_seed(0)
    classes = [F.normalize(torch.randn(n, 6, generator=generator), dim=-1) for n in (2, 3, 1)]
    truths = np.arange(90) % 3
    centres = torch.stack([embeds.mean(dim=0) for embeds in classes])[truths]
    images = F.normalize(centres + 0.5 * torch.randn(90, 6, generator=generator), dim=-1)
    scale, bias = fit_classes(images, classes, truths, 30.0, -10.0)

    def loss(scale, bias):
        return log_loss(truths, refitted_probabilities(images, classes, (scale, bias)))

    least = loss(scale, bias)
    assert least < loss(30.0, -10.0) - 0.01
    for factor in (0.8, 1.25):
        assert least <= loss(scale * factor, bias) + 1e-9
    for step in (-1, 1):
        assert least <= loss(scale, bias + step) + 1e-6
    # Where the sigmoid is nearly exponential, the shares are a plain softmax over prompts.
    share = refitted_probabilities(images, classes, (5.0, -90.0))
    plain = torch.stack([(5.0 * images @ e.T).exp().mean(dim=1) for e in classes], dim=1)
    np.testing.assert_allclose(share, plain / plain.sum(dim=1, keepdim=True), rtol=1e-5)


def test_equal_probabilities_are_in_the_bin_of_their_middle():
    probabilities, happened = np.array([0.1, 0.5, 0.5, 0.5]), np.array([True, False, False, False])
    assert math.isclose(expected_calibration_error(probabilities, happened, num_bins=2), (0.9 + 1.5) / 4)

"""Whether a probability of 0.8 is right eight times in ten, and the temperature and bias that make it so."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from torch import Tensor

from medfinetune.evaluation.zero_shot import class_probabilities, class_scores

_NUM_BINS = 15
_SCALES = (1e-3, 1e4)
_BIASES = (-1e3, 1e3)


def expected_calibration_error(probabilities: np.ndarray, happened: np.ndarray, num_bins: int = _NUM_BINS) -> float:
    """Mean distance between a stated probability and how often it came true, over bins of equally many rows.

    Nixon et al. 2019 (arXiv:1904.01685) for bins of equal mass. Rows of equal probability stay in one bin, so that
    the order of the rows changes nothing.

    Args:
        probabilities: `(N,)`, in [0, 1].
        happened: `(N,)`, bool.

    Returns:
        In [0, 1]: the bins' distances between mean probability and share that happened, weighted by their rows.
    """
    order = np.argsort(probabilities, kind="stable")
    _, first, counts = np.unique(probabilities[order], return_index=True, return_counts=True)
    bins = np.repeat(((first + (counts - 1) / 2) * num_bins / len(order)).astype(int), counts)
    gaps = np.bincount(bins, weights=probabilities[order] - happened[order])
    return float(np.abs(gaps).sum() / len(order))


def match_figures(logits: np.ndarray, matched: np.ndarray) -> dict[str, float]:
    """Calibration of the probability that a text belongs to an image, `sigmoid(logits)`.

    Args:
        logits: `(N,)`, of matched and unmatched pairs.
        matched: `(N,)`, bool.

    Returns:
        `expected_calibration_error` and `brier` (Brier 1950: the mean squared distance) in [0, 1].
    """
    probabilities = expit(logits)
    return {
        "expected_calibration_error": expected_calibration_error(probabilities, matched),
        "brier": float(((probabilities - matched) ** 2).mean()),
    }


def class_figures(probabilities: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Calibration of class probabilities.

    Args:
        probabilities: `(N, C)`, rows sum to 1.
        truths: `(N,)`, the number of each image's class.

    Returns:
        `expected_calibration_error` of the most probable class, in [0, 1]; `brier`, the squared distance summed over
        the classes, in [0, 2].
    """
    best = probabilities.argmax(axis=1)
    errors = (probabilities - np.eye(probabilities.shape[1])[truths]) ** 2
    return {
        "expected_calibration_error": expected_calibration_error(probabilities.max(axis=1), best == truths),
        "brier": float(errors.sum(axis=1).mean()),
    }


def fit_match(cosines: np.ndarray, matched: np.ndarray, scale: float, bias: float) -> tuple[float, float]:
    """Temperature and bias with the least negative log likelihood of matched and unmatched pairs (Platt 1999).

    Args:
        cosines: `(N,)`.
        matched: `(N,)`, bool.
        scale: To start from; already exponentiated.
        bias: To start from.

    Returns:
        Scale, from 0.001 to 10,000 (pairs that a threshold parts have no best one), and bias.
    """
    # Cosines of SigLIP lie in a narrow band: spread out, scale and bias no longer trade places along a thin valley.
    mean, spread = float(cosines.mean()), float(cosines.std()) or 1.0
    spread_out, signs = (cosines - mean) / spread, np.where(matched, 1.0, -1.0)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (x[0] * spread_out + x[1])
        slopes = -signs * expit(-margins)
        return -log_expit(margins).mean(), np.array([(slopes * spread_out).mean(), slopes.mean()])

    start = np.array([scale * spread, bias + scale * mean])
    limits = [(_SCALES[0] * spread, _SCALES[1] * spread), _BIASES]
    found = minimize(loss, start, jac=True, bounds=limits, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-13})
    return float(found.x[0] / spread), float(found.x[1] - found.x[0] * mean / spread)


def fit_classes(
    image_embeds: Tensor, class_embeds: Sequence[Tensor], truths: np.ndarray, scale: float, bias: float
) -> tuple[float, float]:
    """Temperature and bias with the least negative log likelihood of the images' true classes.

    Args:
        image_embeds: `(N, D)`, unit norm.
        class_embeds: For each class `(num_prompts, D)`, unit norm.
        truths: `(N,)`, the number of each image's class.
        scale: To start from; already exponentiated.
        bias: To start from.

    Returns:
        Scale, from 0.001 to 10,000, and bias, from -100 to 100 (far below 0 it changes nothing any more).
    """
    images, classes = image_embeds.double(), [embeds.double() for embeds in class_embeds]
    right = torch.as_tensor(truths)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(x, requires_grad=True)
        nll = torch.nn.functional.cross_entropy(class_scores(images, classes, at[0].exp(), at[1]), right)
        return nll.item(), torch.autograd.grad(nll, at)[0].numpy()

    limits = [tuple(np.log(_SCALES)), (-100.0, 100.0)]
    found = minimize(loss, np.array([np.log(scale), bias]), jac=True, bounds=limits, method="L-BFGS-B")
    return float(np.exp(found.x[0])), float(found.x[1])


def refitted_probabilities(
    image_embeds: Tensor, class_embeds: Sequence[Tensor], fitted: tuple[float, float]
) -> np.ndarray:
    """Class probabilities `(N, C)` with another scale and bias than the model's."""
    return class_probabilities(class_scores(image_embeds.double(), [e.double() for e in class_embeds], *fitted)).numpy()

"""How well images are graded: figures that common classes, chance and a constant answer cannot flatter."""

import math
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix, recall_score, roc_auc_score


def grade_figures(
    probabilities: np.ndarray, truths: np.ndarray, ordered: bool = False, predicted: np.ndarray | None = None
) -> dict[str, Any]:
    """The figures of one task.

    Args:
        probabilities: `(N, C)`, rows sum to 1.
        truths: `(N,)`, the number of each image's class.
        ordered: Whether the classes stand in an order, which kappa needs.
        predicted: `(N,)`; the most probable class where left out.

    Returns:
        `accuracy`; `balanced_accuracy`, the mean recall of the classes that occur; `auc`, the mean over the classes
        of the area under the ROC curve of one against the rest, those left out that no image or every image is of;
        `kappa`, with quadratic weights (Cohen 1968), for ordered classes; all in [0, 1] but kappa in [-1, 1], nan
        where they do not exist. Beside them `chance` (1 / C), `majority` (the share of the most common class, which
        a constant answer reaches), `num_images`, `num_classes`, and `confusion`, `C` rows of true classes by `C`
        predicted ones, in images.
    """
    classes = range(probabilities.shape[1])
    predicted = most_probable(probabilities) if predicted is None else predicted
    counts = np.bincount(truths, minlength=len(classes))
    figures: dict[str, Any] = {
        "accuracy": float((predicted == truths).mean()),
        # Not balanced_accuracy_score, which warns where a class is predicted that does not occur.
        "balanced_accuracy": float(
            recall_score(truths, predicted, labels=np.flatnonzero(counts), average="macro", zero_division=0)
        ),
        "auc": one_against_rest_auc(probabilities, truths),
    }
    if ordered:
        figures["kappa"] = quadratic_kappa(predicted, truths, len(classes))
    return figures | {
        "chance": 1 / len(classes),
        "majority": float(counts.max() / len(truths)),
        "num_images": len(truths),
        "num_classes": len(classes),
        "confusion": confusion_matrix(truths, predicted, labels=classes).tolist(),
    }


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """`(N,)`, the number of each row's greatest entry; the first of equal ones."""
    return probabilities.argmax(axis=1)


def one_against_rest_auc(probabilities: np.ndarray, truths: np.ndarray) -> float:
    """Mean area under the ROC curve, each class against the rest; nan where there is but one class."""
    if not np.isfinite(probabilities).all():
        return math.nan
    areas = [
        roc_auc_score(truths == number, probabilities[:, number])
        for number in range(probabilities.shape[1])
        if 0 < (truths == number).sum() < len(truths)
    ]
    return float(np.mean(areas)) if areas else math.nan


def quadratic_kappa(predicted: np.ndarray, truths: np.ndarray, num_classes: int) -> float:
    """Cohen's kappa with quadratic weights, in [-1, 1]; nan where every answer and every truth is one class."""
    if len(np.union1d(predicted, truths)) < 2:
        return math.nan
    return float(cohen_kappa_score(truths, predicted, labels=list(range(num_classes)), weights="quadratic"))

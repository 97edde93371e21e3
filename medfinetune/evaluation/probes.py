"""What frozen image embeddings know: nearest neighbours, and a linear probe, from the training split."""

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, recall_score
from torch import Tensor

NUM_NEIGHBOURS = (1, 5, 20)
_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def nearest(
    query_embeds: Tensor,
    embeds: Tensor,
    k: int,
    query_owners: Sequence[Sequence[Hashable]] = (),
    owners: Sequence[Sequence[Hashable]] = (),
    chunk_rows: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest images of each query.

    Args:
        query_embeds: `(Q, D)`, unit norm.
        embeds: `(N, D)`, unit norm.
        k: How many; all there are where there are fewer.
        query_owners: For each query what no neighbour may share: its pixels, its patient. None is passed over.
        owners: The same for each image.
        chunk_rows: Queries handled at once; memory grows with `chunk_rows * N`.

    Returns:
        `(Q, k)`, the images' numbers, nearest first; and `(Q, k)`, their cosines, -inf for one that may not count.
    """
    holders: dict[Hashable, list[int]] = {}
    for image, shared in enumerate(owners):
        for owner in shared:
            if owner is not None:
                holders.setdefault(owner, []).append(image)
    found, cosines = [], []
    for start in range(0, len(query_embeds), chunk_rows):
        table = query_embeds[start : start + chunk_rows] @ embeds.T
        for row in range(len(table) if query_owners else 0):
            for owner in query_owners[start + row]:
                table[row, holders.get(owner, [])] = -torch.inf
        best = table.topk(min(k, len(embeds)), dim=1)
        found.append(best.indices)
        cosines.append(best.values)
    return torch.cat(found).numpy(), torch.cat(cosines).numpy()


def vote(cosines: np.ndarray, classes: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Majority of the nearest images (Fix & Hodges 1951); of equally many votes, the nearer ones win.

    Args:
        cosines: `(Q, k)`; -inf for a neighbour that does not count.
        classes: `(Q, k)`, the number of each neighbour's class.
        num_classes: Classes there are.

    Returns:
        `(Q, num_classes)`, each class's share of the votes (all equal where nobody votes); `(Q,)`, the winner.
    """
    counts = np.isfinite(cosines)
    one_hot = np.eye(num_classes)[classes] * counts[:, :, None]
    votes = one_hot.sum(axis=1)
    # Cosines moved to [0, 1] add up to less than one vote: they decide between equals only.
    nearness = (one_hot * ((np.where(counts, cosines, 0.0) + 1) / 2)[:, :, None]).sum(axis=1)
    winner = (votes + nearness / (cosines.shape[1] + 1)).argmax(axis=1)
    total = votes.sum(axis=1, keepdims=True)
    return np.where(total > 0, votes / np.maximum(total, 1), 1 / num_classes), winner


def label_knn_accuracy(image_embeds: Tensor, groups: Tensor, sources: Sequence[str], k: int = 5) -> float | None:
    """How many of a set's images have the label that most of their nearest others have; nothing is trained.

    Each distinct image asks the labelled images of its own source, other than itself and those of its patient.

    Args:
        image_embeds: `(P, D)`, unit norm, of every row.
        groups: `(P, 5)`, from `group_ids_of`; rows without a label are left out, and with them questions.
        sources: Of each row.
        k: How many neighbours vote.

    Returns:
        In [0, 1]; None where no image has a label and another one to ask.
    """
    images, _, labels, patients, _ = groups.numpy().T
    first: dict[Hashable, int] = {}
    for row in np.flatnonzero(labels):
        first.setdefault(images[row] or ("row", row), int(row))
    by_source: dict[str, list[int]] = {}
    for row in first.values():
        by_source.setdefault(sources[row], []).append(row)
    right = []
    for rows in by_source.values():
        owners = [(("row", row), ("patient", patients[row]) if patients[row] else None) for row in rows]
        found, cosines = nearest(image_embeds[rows], image_embeds[rows], k, owners, owners)
        near = labels[rows][found]
        # Numbered within each query's own neighbours: there may be as many labels as images.
        _, winner = vote(cosines, (near[:, :, None] == near[:, None, :]).argmax(axis=2), near.shape[1])
        named = near[np.arange(len(rows)), winner]
        right += (named == labels[rows])[np.isfinite(cosines).any(axis=1)].tolist()
    return float(np.mean(right)) if right else None


def linear_probe(
    embeds: np.ndarray,
    truths: np.ndarray,
    validation_embeds: np.ndarray,
    validation_truths: np.ndarray,
    query_embeds: np.ndarray,
    num_classes: int,
) -> tuple[np.ndarray, float]:
    """Logistic regression on frozen embeddings; its strength is the one that suits the validation split best.

    Args:
        embeds: `(N, D)`, unit norm, of the training split; at least two classes occur.
        truths: `(N,)`, their classes' numbers.
        validation_embeds: `(V, D)`.
        validation_truths: `(V,)`; where there are none, the strength is 1.
        query_embeds: `(Q, D)`.
        num_classes: Classes there are; those that training never shows get probability 0.

    Returns:
        `(Q, num_classes)`, rows sum to 1; and the `C` of scikit-learn with the best balanced accuracy on the validation
        split (log loss would choose one that never names a rare class), of equals that with the least log loss.
    """
    # In fp32 the probabilities add up to 1 too roughly for scikit-learn's own check.
    embeds, validation_embeds, query_embeds = (
        table.astype(np.float64) for table in (embeds, validation_embeds, query_embeds)
    )
    best: tuple[tuple[float, float], float, np.ndarray] | None = None
    for strength in _STRENGTHS if len(validation_truths) else (1.0,):
        probe = LogisticRegression(C=strength, max_iter=2000)
        with warnings.catch_warnings():
            # A strength at which it does not converge is judged by the validation split as any other.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(embeds, truths)
        loss = (0.0, 0.0)
        if len(validation_truths):
            stated = _spread(probe.predict_proba(validation_embeds), probe.classes_, num_classes)
            occurring = np.unique(validation_truths)
            recall = recall_score(
                validation_truths, stated.argmax(axis=1), labels=occurring, average="macro", zero_division=0
            )
            loss = (-recall, log_loss(validation_truths, stated, labels=list(range(num_classes))))
        if best is None or loss < best[0]:
            best = (loss, strength, _spread(probe.predict_proba(query_embeds), probe.classes_, num_classes))
    _, strength, probabilities = best
    return probabilities, strength


def _spread(probabilities: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    whole = np.zeros((len(probabilities), num_classes))
    whole[:, classes] = probabilities
    return whole

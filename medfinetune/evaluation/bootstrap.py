"""Confidence intervals by resampling patients, not rows: images of one patient are not independent."""

from collections.abc import Hashable, Sequence

import numpy as np

from medfinetune.evaluation.case_statistics import CaseStatistics

_ROWS_AT_ONCE = 64


class Bootstrap:
    """Percentile intervals from resampled clusters (Efron 1979; Field & Welsh 2007 on clusters).

    As many clusters as there are get drawn with replacement, each with all of its rows. Figures of a resample are
    those of its rows counted as often as they were drawn.
    """

    def __init__(self, clusters: Sequence[Hashable], num_resamples: int = 1000, seed: int = 0, level: float = 0.95):
        """
        Args:
            clusters: Of each of `N` rows: its patient where known, else its image.
            num_resamples: Draws.
            seed: The same seed draws the same resamples.
            level: Of the interval, in (0, 1).
        """
        numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
        self._codes = np.array([numbers[cluster] for cluster in clusters], dtype=np.int64)
        self.num_clusters = len(numbers)
        shape = num_resamples, self.num_clusters
        draws = np.random.default_rng(seed).integers(self.num_clusters, size=shape, dtype=np.int32)
        # How often each cluster was drawn, resample by resample: a row at a time stays in the processor's cache.
        self.counts = np.empty(shape)
        for counts, drawn in zip(self.counts, draws, strict=True):
            counts[:] = np.bincount(drawn, minlength=self.num_clusters)
        self._percentiles = (50 * (1 - level), 50 * (1 + level))

    def means(self, values: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """`(num_resamples,)`: the mean of some rows' values in each resample; nan where it drew none of them.

        Args:
            values: `(K,)`.
            rows: `(K,)`, the rows that they belong to; all, in order, where left out.
        """
        codes = self._codes if rows is None else self._codes[np.asarray(rows)]
        with np.errstate(invalid="ignore"):
            return self._sums(values[:, None], codes)[:, 0] / self._sums(np.ones((len(values), 1)), codes)[:, 0]

    def figures(self, statistics: Sequence[CaseStatistics], rows: Sequence[int] | None = None) -> list[np.ndarray]:
        """For each of some figures `(num_resamples,)`: its value in each resample; nan where it does not exist there.

        The sums of all of them are taken at once. Different figures, and those of different systems on the same cases,
        stand on the same resamples, so that their differences are paired.

        Args:
            statistics: Of all `N` rows.
            rows: Those that the figures are of; all where left out.
        """
        if not statistics:
            return []
        chosen = np.arange(len(self._codes)) if rows is None else np.asarray(rows, dtype=np.int64)
        columns = [part for one in statistics for part in (one.values[chosen], one.counted[chosen, None])]
        sums = self._sums(np.concatenate(columns, axis=1).astype(np.float64), self._codes[chosen])
        found, start = [], 0
        for one in statistics:
            end = start + one.values.shape[1]
            # The formula of no case at all may well be a number, such as 0.
            found.append(np.where(sums[:, end] > 0, one.formula(sums[:, start:end]), np.nan))
            start = end + 1
        return found

    def num_clusters_of(self, rows: Sequence[int] | None = None) -> int:
        """How many clusters some rows belong to."""
        return self.num_clusters if rows is None else len(np.unique(self._codes[np.asarray(rows, dtype=np.int64)]))

    def interval(self, figures: np.ndarray) -> list[float]:
        """Lower and upper limit of a figure from its `(num_resamples,)` values; nan where it does not exist."""
        known = figures[np.isfinite(figures)]
        if self.num_clusters < 2 or not len(known):
            return [float("nan")] * 2
        return [float(limit) for limit in np.percentile(known, self._percentiles)]

    def grades(
        self, probabilities: np.ndarray, truths: np.ndarray, ordered: bool = False, predicted: np.ndarray | None = None
    ) -> dict[str, list[float]]:
        """Limits of `accuracy`, `balanced_accuracy`, `auc` and, for ordered classes, `kappa`.

        Args:
            probabilities: `(N, C)`, rows sum to 1.
            truths: `(N,)`, the number of each row's class.
            ordered: Whether the classes stand in an order.
            predicted: `(N,)`; the most probable class where left out.
        """
        predicted = probabilities.argmax(axis=1) if predicted is None else predicted
        num_classes = probabilities.shape[1]
        cells = np.eye(num_classes * num_classes)[truths * num_classes + predicted]
        tables = self._sums(cells, self._codes).reshape(-1, num_classes, num_classes)
        figures = confusion_figures(tables)
        if not ordered:
            del figures["kappa"]
        areas = []
        for start in range(0, len(self.counts), _ROWS_AT_ONCE):
            weights = self.counts[start : start + _ROWS_AT_ONCE, self._codes]
            by_class = [weighted_auc(probabilities[:, c], truths == c, weights) for c in range(num_classes)]
            areas.append(_mean_of_known(np.stack(by_class, axis=1)))
        figures["auc"] = np.concatenate(areas)
        return {name: self.interval(values) for name, values in figures.items()}

    def _sums(self, values: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """`(num_resamples, K)`: the sums of `(N, K)` values over the rows that each resample drew."""
        by_cluster = np.zeros((self.num_clusters, values.shape[1]))
        np.add.at(by_cluster, codes, values)
        return self.counts @ by_cluster


def confusion_figures(tables: np.ndarray) -> dict[str, np.ndarray]:
    """`accuracy`, `balanced_accuracy` and `kappa` (quadratic weights) of many confusion matrices at once.

    Args:
        tables: `(R, C, C)`, rows are true classes.

    Returns:
        For each figure `(R,)`; nan where it does not exist.
    """
    total, num_classes = tables.sum(axis=(1, 2)), tables.shape[1]
    right, true, stated = tables.diagonal(axis1=1, axis2=2), tables.sum(axis=2), tables.sum(axis=1)
    places = np.arange(num_classes)
    distance = (places[:, None] - places[None, :]) ** 2
    expected = true[:, :, None] * stated[:, None, :] / total[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": right.sum(axis=1) / total,
            "balanced_accuracy": _mean_of_known(right / true),
            "kappa": 1 - (tables * distance).sum(axis=(1, 2)) / (expected * distance).sum(axis=(1, 2)),
        }


def weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for many weightings of the same rows at once.

    Args:
        scores: `(N,)`, higher for positives; equal ones count half (Mann & Whitney 1947).
        positive: `(N,)`, bool.
        weights: `(R, N)`, at least 0.

    Returns:
        `(R,)`, in [0, 1]; nan where a weighting leaves no positive or no negative.
    """
    order = np.argsort(scores, kind="stable")
    sorted_scores, weights = scores[order], weights[:, order]
    first = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
    positives = np.add.reduceat(weights * positive[order], first, axis=1)
    negatives = np.add.reduceat(weights * ~positive[order], first, axis=1)
    below = negatives.cumsum(axis=1) - negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Row means over what is not nan; nan where all of a row is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)

"""Figures of a set during training, from embeddings that the evaluation makes anyway; no image is opened."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from medfinetune.encoder.labels import COLUMNS, group_ids_of
from medfinetune.encoder.metrics import retrieval_metrics
from medfinetune.errors import InputError
from medfinetune.evaluation.calibration import match_figures
from medfinetune.evaluation.classification import grade_figures
from medfinetune.evaluation.matching import matched_and_unmatched
from medfinetune.evaluation.probes import label_knn_accuracy
from medfinetune.evaluation.tasks import Task, known_truths, read_tasks, require_truths
from medfinetune.evaluation.zero_shot import class_probabilities, class_scores, embed_classes

_NEEDED = ("text", "language", "pixel_sha256")
_OF_TASKS = ("id", "source", "label", "metadata")
_ALL = tuple(dict.fromkeys((*_NEEDED, *_OF_TASKS, *COLUMNS)))
_FIGURES = ("accuracy", "balanced_accuracy", "auc", "kappa")


class EvaluatedRows:
    """What is known of a set's rows, and the figures that their embeddings give."""

    def __init__(self, dataset: Any, tasks: Sequence[Task] = (), by_label: bool = True):
        """
        Args:
            dataset: A `datasets.Dataset` with `text`, `language` and `pixel_sha256`, or a `PairCache`.
            tasks: That its images are graded for; those that no row knows its class in are left out.
            by_label: Whether search may find the texts of an equal label.

        Raises:
            InputError: A column is missing, or a row holds a value that is no class of its task.
        """
        columns = _columns_of(dataset, tasks)
        self._languages, self._by_label = columns["language"], by_label
        self._sources = columns.get("source") or [""] * len(self._languages)
        self._groups = group_ids_of({name: columns[name] for name in COLUMNS if name in columns})
        self._truths = [(task, *_first_of_images(known_truths(task, columns), columns)) for task in tasks]

    def figures(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        embed_texts: Callable[[list[str]], Tensor],
        scale: float,
        bias: float,
    ) -> dict[str, float]:
        """Search, `ece` of the match probability, `knn_accuracy`, and the grades.

        Args:
            image_embeds: `(P, D)`, unit norm, of every row.
            text_embeds: `(P, D)`, unit norm.
            embed_texts: Texts -> `(N, D)`, unit norm, by the current model; asked once a task.
            scale: The current one, already exponentiated.
            bias: The current one.

        Returns:
            What `retrieval_metrics` gives; `ece`, as `match_calibration` takes it, where there are pairs that do not
            match; `knn_accuracy` (`label_knn_accuracy`) where rows have labels; for each task `<task>_accuracy`,
            `_balanced_accuracy`, `_auc` and, for ordered classes, `_kappa`.
        """
        metrics = retrieval_metrics(image_embeds, text_embeds, self._languages, self._groups, self._by_label)
        cosines, matched = matched_and_unmatched(image_embeds, text_embeds, self._groups, self._languages)
        if not matched.all():
            metrics["ece"] = match_figures(scale * cosines + bias, matched)["expected_calibration_error"]
        knn = label_knn_accuracy(image_embeds, self._groups, self._sources)
        if knn is not None:
            metrics["knn_accuracy"] = knn
        for task, rows, truths in self._truths:
            if len(rows):
                class_embeds = embed_classes(task.prompts(sorted(set(self._languages))), embed_texts)
                scores = class_scores(image_embeds[rows], class_embeds, scale, bias)
                figures = grade_figures(class_probabilities(scores).numpy(), truths, task.ordered)
                metrics |= {f"{task.name}_{name}": figures[name] for name in _FIGURES if name in figures}
        return metrics


def read_known_tasks(names: str | Sequence[str] | None, datasets: Sequence[Any]) -> list[Task]:
    """The tasks of some files, each of which a row of the sets that will be evaluated must know its class in.

    Args:
        names: As for `read_tasks`; no tasks where left out.
        datasets: As for `EvaluatedRows`; where there are none, only the files are read.

    Raises:
        InputError: A file is missing or wrong, or the sets do not hold what its tasks ask for.
    """
    tasks = read_tasks(names) if names else []
    columns = [_columns_of(dataset, tasks) for dataset in datasets] if tasks else []
    for task in tasks:
        if columns and not any(known_truths(task, known) for known in columns):
            require_truths(task, columns[0])
    return tasks


def _columns_of(dataset: Any, tasks: Sequence[Task]) -> Mapping[str, Sequence[Any]]:
    columns = getattr(dataset, "columns", None)  # a PairCache keeps them
    if columns is None:
        if not hasattr(dataset, "select_columns"):
            raise InputError(
                f"eval_dataset: a {type(dataset).__name__} does not say what its rows are; give a PairCache"
            )
        plain = dataset.select_columns([name for name in _ALL if name in dataset.column_names])
        columns = {name: list(plain[name]) for name in plain.column_names}
    for column in _NEEDED:
        if column not in columns:
            raise InputError(f"eval_dataset: the rows have no column {column}")
    for column in _OF_TASKS if tasks else ():
        if column not in columns:
            raise InputError(f"zero_shot_file: the validation rows have no column {column}")
    return columns


def _first_of_images(truths: Mapping[int, int], columns: Mapping[str, Sequence[Any]]) -> tuple[list[int], np.ndarray]:
    """Row -> class, of the first row of each image alone: rows `(M,)`, and their classes `(M,)`."""
    of_images: dict[str, int] = {}
    for row in truths:
        of_images.setdefault(columns["pixel_sha256"][row][0], row)
    rows = list(of_images.values())
    return rows, np.array([truths[row] for row in rows], dtype=np.int64)

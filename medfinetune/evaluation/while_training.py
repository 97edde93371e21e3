"""Zero-shot grades of the validation images during training, from embeddings that the evaluation makes anyway."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medfinetune.data.load import load_pairs
from medfinetune.errors import InputError
from medfinetune.evaluation.classification import grade_figures
from medfinetune.evaluation.tasks import Task, read_tasks, require_truths
from medfinetune.evaluation.zero_shot import class_probabilities, class_scores, embed_classes

_COLUMNS = ("id", "source", "label", "metadata", "pixel_sha256")
_FIGURES = ("accuracy", "balanced_accuracy", "auc", "kappa")


class ZeroShotGrader:
    """Grades a set's distinct images by the prompts of one or more tasks, no image opened."""

    def __init__(
        self,
        tasks: Sequence[Task],
        image_keys: Sequence[str],
        languages: Sequence[str],
        known: Mapping[str, Sequence[Any]],
    ):
        """
        Args:
            tasks: What the images are graded for.
            image_keys: What the image of each embedded row is by content.
            languages: Of each embedded row; prompts of other languages are left out.
            known: The columns `id, source, label, metadata, pixel_sha256` of rows that show the same images.

        Raises:
            InputError: No image knows its class, or a row holds a value that is no class.
        """
        self._languages = sorted(set(languages))
        first = {key: row for row, key in reversed(list(enumerate(image_keys)))}
        self._truths: list[tuple[Task, list[int], np.ndarray]] = []
        for task in tasks:
            of_images: dict[int, int] = {}
            for row, number in require_truths(task, known).items():
                key = known["pixel_sha256"][row][0]
                if key in first:
                    of_images.setdefault(first[key], number)
            if not of_images:
                raise InputError(f"zero_shot_file: task {task.name}: no validation image has a label")
            self._truths.append((task, list(of_images), np.array(list(of_images.values()))))

    def figures(
        self, image_embeds: Tensor, embed_texts: Callable[[list[str]], Tensor], scale: float, bias: float
    ) -> dict[str, float]:
        """`<task>_accuracy`, `_balanced_accuracy`, `_auc` and, for ordered classes, `_kappa`.

        Args:
            image_embeds: `(P, D)`, unit norm, of every row.
            embed_texts: Texts -> `(N, D)`, unit norm, by the current model; asked once a task.
            scale: The current one, already exponentiated.
            bias: The current one.
        """
        metrics = {}
        for task, rows, truths in self._truths:
            class_embeds = embed_classes(task.prompts(self._languages), embed_texts)
            scores = class_scores(image_embeds[rows], class_embeds, scale, bias)
            figures = grade_figures(class_probabilities(scores).numpy(), truths, task.ordered)
            metrics |= {f"{task.name}_{name}": figures[name] for name in _FIGURES if name in figures}
        return metrics


def zero_shot_grader(
    names: str | Sequence[str], dataset: Any, image_keys: Sequence[str], languages: Sequence[str], data_dir: str | Path
) -> ZeroShotGrader:
    """The grader of a validation set.

    Args:
        names: As for `read_tasks`.
        dataset: The set; where it has no column `label`, as a cache of pixels has none, the labels are those that the
            validation split of `data_dir` gives the same images.
        image_keys: As for `ZeroShotGrader`.
        languages: As for `ZeroShotGrader`.
        data_dir: The folder that `prepare` wrote.

    Raises:
        InputError: A file is missing or wrong, or the set does not hold what its tasks ask for.
    """
    tasks = read_tasks(names)
    rows = dataset if hasattr(dataset, "column_names") else load_pairs(data_dir, "validation")
    for column in _COLUMNS:
        if column not in rows.column_names:
            raise InputError(f"zero_shot_file: the validation rows have no column {column}")
    plain = rows.select_columns(list(_COLUMNS))
    return ZeroShotGrader(tasks, image_keys, languages, {column: list(plain[column]) for column in _COLUMNS})

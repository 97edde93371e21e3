"""Grading by task: from prompts alone, from the nearest training images, and by a linear probe."""

import random
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medfinetune.evaluation.bootstrap import Bootstrap
from medfinetune.evaluation.calibration import class_figures, fit_classes, refitted_probabilities
from medfinetune.evaluation.classification import grade_figures
from medfinetune.evaluation.embedded import EmbeddedSplit
from medfinetune.evaluation.probes import NUM_NEIGHBOURS, linear_probe, nearest, vote
from medfinetune.evaluation.shuffling import derangement
from medfinetune.evaluation.tasks import Task
from medfinetune.evaluation.zero_shot import class_probabilities, class_scores, embed_classes

_NUM_SHOWN = 5
_FIGURES = ("accuracy", "balanced_accuracy", "auc", "kappa")


class TaskGrades:
    """The images of one task that are graded, and every figure that is taken of them."""

    def __init__(self, task: Task, split: EmbeddedSplit, num_resamples: int = 1000, seed: int = 0):
        """
        Args:
            task: At least one image of the split knows its class.
            split: The evaluated one.
            num_resamples: For the intervals; left out at 0.
            seed: Draws them, and shuffles the images.
        """
        self.task, self.split = task, split
        self.images, self.truths = split.truths(task)
        self.embeds = split.embeds[self.images]
        clusters = split.clusters
        self._bootstrap = Bootstrap([clusters[i] for i in self.images], num_resamples, seed) if num_resamples else None
        self._shuffled = derangement(range(len(self.images)), seed) if len(self.images) > 1 else None

    def measure(self, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> dict[str, Any]:
        """`grade_figures`, with `<figure>_ci`, and `<figure>_shuffled_image` for each image graded by another's.

        Args:
            probabilities: `(N, C)`, rows sum to 1.
            predicted: `(N,)`; the most probable class where left out.
        """
        ordered = self.task.ordered
        figures = grade_figures(probabilities, self.truths, ordered, predicted)
        if self._bootstrap is not None:
            intervals = self._bootstrap.grades(probabilities, self.truths, ordered, predicted)
            figures |= {f"{name}_ci": limits for name, limits in intervals.items()}
        if self._shuffled is not None:
            moved = None if predicted is None else predicted[self._shuffled]
            control = grade_figures(probabilities[self._shuffled], self.truths, ordered, moved)
            figures |= {f"{name}_shuffled_image": control[name] for name in _FIGURES if name in control}
        return figures

    def zero_shot(
        self, embed_texts: Callable[[list[str]], Tensor], scale: float, bias: float
    ) -> tuple[dict[str, Any], list[Tensor]]:
        """Grades by prompts of the languages that the split's texts are in, and by those of each language alone.

        Returns:
            The figures, with `by_language` where there are several; and each class's prompts, `(num_prompts, D)`.
        """
        spoken = sorted(set(self.split.columns["language"]))

        def graded(languages: list[str]) -> tuple[dict[str, Any], list[Tensor]]:
            class_embeds = embed_classes(self.task.prompts(languages), embed_texts)
            scores = class_scores(self.embeds, class_embeds, scale, bias)
            return self.measure(class_probabilities(scores).numpy()), class_embeds

        figures, class_embeds = graded(spoken)
        both = [language for language in self.task.languages if language in spoken]
        if len(both) > 1:
            figures["by_language"] = {language: graded([language])[0] for language in both}
        return figures, class_embeds

    def neighbours(self, train: EmbeddedSplit) -> tuple[dict[str, Any], list[list[tuple[int, int, float]]]]:
        """Grades by the nearest training images that share neither pixels nor patient with the query.

        Returns:
            Number of neighbours -> figures; and for each query its nearest as (training image, class, cosine). Both
            are empty where no training image knows its class.
        """
        images, classes = train.truths(self.task)
        if not len(images):
            return {}, []
        query_owners, owners = _owners(self.split, self.images), _owners(train, images)
        found, cosines = nearest(self.embeds, train.embeds[images], max(NUM_NEIGHBOURS), query_owners, owners)
        figures = {
            str(k): self.measure(*vote(cosines[:, :k], classes[found[:, :k]], len(self.task.values)))
            | {"num_training_images": len(images)}
            for k in NUM_NEIGHBOURS
        }
        shown = [
            [
                (int(images[i]), int(classes[i]), float(cosine))
                for i, cosine in zip(row[:_NUM_SHOWN], near, strict=False)
                if np.isfinite(cosine)
            ]
            for row, near in zip(found, cosines, strict=True)
        ]
        return figures, shown

    def probe(self, train: EmbeddedSplit, validation: EmbeddedSplit | None) -> dict[str, Any]:
        """Grades by a linear probe; empty where fewer than two classes occur among the training images."""
        images, classes = train.truths(self.task)
        if len(set(classes.tolist())) < 2:
            return {}
        held_out, held_out_classes = (
            validation.truths(self.task) if validation is not None else (np.zeros(0, dtype=np.int64),) * 2
        )
        held_out_embeds = (validation or train).embeds[held_out].numpy()
        probabilities, strength = linear_probe(
            train.embeds[images].numpy(),
            classes,
            held_out_embeds,
            held_out_classes,
            self.embeds.numpy(),
            len(self.task.values),
        )
        return self.measure(probabilities) | {
            "C": strength,
            "num_training_images": len(images),
            "num_validation_images": len(held_out),
        }

    def calibration(
        self, class_embeds: Sequence[Tensor], scale: float, bias: float, validation: EmbeddedSplit | None
    ) -> dict[str, Any]:
        """Whether the zero-shot class probabilities are honest, `as_trained` and `refitted` on the validation split."""
        scores = class_scores(self.embeds, class_embeds, scale, bias)
        result: dict[str, Any] = {"as_trained": class_figures(class_probabilities(scores).numpy(), self.truths)}
        images, truths = validation.truths(self.task) if validation is not None else ([], [])
        if len(images):
            fitted = fit_classes(validation.embeds[images], class_embeds, truths, scale, bias)
            probabilities = refitted_probabilities(self.embeds, class_embeds, fitted)
            result["refitted"] = class_figures(probabilities, self.truths) | {"scale": fitted[0], "bias": fitted[1]}
            result["num_validation_images"] = len(images)
        return result | {"num_images": len(self.images)}

    def pictures(
        self,
        train: EmbeddedSplit,
        shown: Sequence[Sequence[tuple[int, int, float]]],
        num_queries: int,
        data_dir: str | Path | None,
        seed: int = 0,
    ) -> list[dict[str, Any]]:
        """Some queries beside their nearest training images, the classes taking turns.

        Args:
            shown: As `neighbours` gives it.
            num_queries: So many, drawn at random.
            data_dir: What the images' paths are relative to.
            seed: Of the draw.
        """
        values = self.task.values
        return [
            {
                "id": self.split.columns["id"][self.split.rows[self.images[query]]],
                "image": self.split.path(self.images[query], data_dir),
                "label": values[self.truths[query]],
                "neighbours": [
                    {
                        "id": train.columns["id"][train.rows[image]],
                        "image": train.path(image, data_dir),
                        "label": values[number],
                        "right": number == int(self.truths[query]),
                        "cosine": cosine,
                    }
                    for image, number, cosine in shown[query]
                ],
            }
            for query in _take_turns(self.truths.tolist(), num_queries, seed)
        ]


def _owners(split: EmbeddedSplit, images: np.ndarray) -> list[tuple[Hashable | None, ...]]:
    """What no neighbour may share with each image: its pixels and its patient."""
    keys = split.image_keys
    return [(keys[image], split.patients[image]) for image in images]


def _take_turns(classes: Sequence[int], number: int, seed: int) -> list[int]:
    """Some places, drawn at random so that each class has as many as it can, up to one."""
    order = random.Random(seed).sample(range(len(classes)), len(classes))
    turn: dict[int, int] = {}
    turns = {}
    for place in order:
        turn[classes[place]] = turns[place] = turn.get(classes[place], -1) + 1
    return sorted(order, key=lambda place: (turns[place], classes[place]))[:number]

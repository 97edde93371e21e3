"""What a fine-tuned encoder can do: search, grading and honest probabilities, each with its control."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor

from medfinetune.encoder.metrics import embed_texts
from medfinetune.evaluation.embedded import EmbeddedSplit, embed_split, plain_columns
from medfinetune.evaluation.grading import TaskGrades
from medfinetune.evaluation.matching import match_calibration
from medfinetune.evaluation.search import search_figures
from medfinetune.evaluation.tasks import Task, require_truths


@dataclass(frozen=True)
class SuiteOptions:
    """How the encoder is measured.

    Attributes:
        pool_size: Cases that recall is measured among.
        batch_size: Images or texts at once.
        max_training_images: So many of the training split, drawn at random; all where left out.
        num_resamples: For the confidence intervals, which are left out at 0.
        num_pictures: Queries shown beside their nearest training images, over all tasks.
        data_dir: What the paths in `neighbours_by_attribute` are relative to.
        seed: Draws pools and resamples, and shuffles the images.
    """

    pool_size: int = 64
    batch_size: int = 64
    max_training_images: int | None = None
    num_resamples: int = 1000
    num_pictures: int = 12
    data_dir: str | Path | None = None
    seed: int = 0

    @classmethod
    def of(cls, config: Any) -> "SuiteOptions":
        """The fields of a config that has them all."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


def check_tasks(tasks: Sequence[Task], pairs: datasets.Dataset) -> None:
    """Raises `InputError` where no pair knows its class in a task, or one holds a value that is no class."""
    columns = plain_columns(pairs) if tasks else {}
    for task in tasks:
        require_truths(task, columns)


def evaluate_encoder(
    model: Any,
    processor: Any,
    pairs: datasets.Dataset,
    tasks: Sequence[Task] = (),
    train: datasets.Dataset | None = None,
    validation: datasets.Dataset | None = None,
    options: SuiteOptions | None = None,
) -> dict[str, Any]:
    """Scores the encoder on held-out pairs; of a pair with several images, the first counts.

    Args:
        pairs: The columns of `data.schema.FEATURES` with decoded images, as `load_pairs` gives them.
        tasks: That images are graded for; none where left out.
        train: Pairs of the training split, which neighbours and linear probe learn from; both are left out without.
        validation: Pairs of the validation split, which temperature, bias and the probe's strength are chosen on.
        options: The defaults where left out.

    Returns:
        A plain dict: `recall_at_1_among_<pool size>` by language (image to text), `recall_pools` with both directions
        and counts, `recall` over the whole set, `calibration`; and with tasks `zero_shot_accuracy` and what stands
        beside it, `zero_shot_by_attribute`, `knn_by_attribute`, `linear_probe_by_attribute`,
        `neighbours_by_attribute`. What ends on `_ci` is a 95% interval by patient where known, else by image; what is
        measured again with the images shuffled among the cases ends on `_shuffled_image`; where they cannot be
        shuffled, `no_shuffled_image` says why.

    Raises:
        InputError: The pairs do not hold what the tasks ask for.
    """
    options = options or SuiteOptions()
    check_tasks(tasks, pairs)

    def embedded(texts: Sequence[str]) -> Tensor:
        return embed_texts(model, processor, list(texts), options.batch_size)

    test = embed_split(model, processor, pairs, options.batch_size)
    held_out = embed_split(model, processor, validation, options.batch_size) if validation is not None else None
    scale, bias = model.logit_scale.exp().item(), model.logit_bias.item()
    result: dict[str, Any] = {
        "num_pairs": len(test.keys),
        "num_images": len(test.rows),
        "num_clusters": len(set(test.clusters)),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    result |= _pairwise(test, held_out, embedded, scale, bias, options)
    taught = None
    if tasks and train is not None and options.max_training_images != 0:
        taught = embed_split(model, processor, train, options.batch_size, options.max_training_images, options.seed)
    num_pictures = -(-options.num_pictures // max(1, len(tasks)))
    for task in tasks:
        grades = TaskGrades(task, test, options.num_resamples, options.seed)
        figures, class_embeds = grades.zero_shot(embedded, scale, bias)
        result["calibration"]["classes_by_attribute"][task.name] = grades.calibration(
            class_embeds, scale, bias, held_out
        )
        result.setdefault("classes_by_attribute", {})[task.name] = task.values
        result.setdefault("zero_shot_by_attribute", {})[task.name] = figures
        if taught is not None:
            _add_learned(result, grades, taught, held_out, num_pictures, options)
    return result | _means(result.get("zero_shot_by_attribute", {}))


def _pairwise(
    test: EmbeddedSplit,
    held_out: EmbeddedSplit | None,
    embedded: Callable[[Sequence[str]], Tensor],
    scale: float,
    bias: float,
    options: SuiteOptions,
) -> dict[str, Any]:
    """Search, and the calibration of the match probability."""
    clusters, text_embeds = test.clusters, embedded(test.columns["text"])
    result = search_figures(
        test.pair_embeds,
        text_embeds,
        test.groups,
        test.columns["language"],
        test.keys,
        [clusters[image] for image in test.place],
        options.pool_size,
        options.num_resamples,
        options.seed,
    )
    held_out_texts = embedded(held_out.columns["text"]) if held_out is not None else None
    match = match_calibration(test, text_embeds, scale, bias, held_out, held_out_texts, options.seed)
    return result | {"calibration": {"match": match, "classes_by_attribute": {}}}


def _add_learned(
    result: dict[str, Any],
    grades: TaskGrades,
    train: EmbeddedSplit,
    validation: EmbeddedSplit | None,
    num_pictures: int,
    options: SuiteOptions,
) -> None:
    """Adds what takes training images, where some of them know their class."""
    name = grades.task.name
    by_number, nearest = grades.neighbours(train)
    if by_number:
        result.setdefault("knn_by_attribute", {})[name] = by_number
        pictures = grades.pictures(train, nearest, num_pictures, options.data_dir, options.seed)
        result.setdefault("neighbours_by_attribute", {})[name] = pictures
    probe = grades.probe(train, validation)
    if probe:
        result.setdefault("linear_probe_by_attribute", {})[name] = probe


def _means(by_attribute: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Over the tasks, of what all of them have."""
    names = {"accuracy", "balanced_accuracy", "chance", "majority", "accuracy_shuffled_image"}
    shared = [name for name in names if by_attribute and all(name in figures for figures in by_attribute.values())]
    return {
        f"zero_shot_{name}": sum(figures[name] for figures in by_attribute.values()) / len(by_attribute)
        for name in sorted(shared)
    }

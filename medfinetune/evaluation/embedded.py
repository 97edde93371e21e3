"""The images of a split, embedded once each, with what is known of them."""

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor

from medfinetune.encoder.labels import COLUMNS, group_ids_of
from medfinetune.encoder.metrics import embed_images
from medfinetune.evaluation.cases import FirstImages
from medfinetune.evaluation.tasks import Task, known_truths

GROUP = "group"
"""Stands for the source in an owner that is no patient but a group of the split: images of one study, of one strip."""
_PLAIN = ["id", "pixel_sha256", "text", "language", "source", "task", "label", "patient_id", "group_id", "metadata"]


@dataclass
class EmbeddedSplit:
    """The distinct images of a split's pairs; of a pair with several images, the first counts.

    Attributes:
        pairs: The rows, `P` of them.
        columns: Of the rows, all but the images.
        keys: `(P,)`, what each row's image is by content.
        rows: `(N,)`, for each distinct image the first row that shows it.
        place: `(P,)`, for each row the number of its image.
        embeds: `(N, D)`, unit norm.
        patients: `(N,)`, the patient of each image; None where nobody says.
        owners: `(P,)`, of each row its patient and the group that `prepare` keeps on one side of the split.
    """

    pairs: datasets.Dataset
    columns: dict[str, list[Any]]
    keys: list[str]
    rows: list[int]
    place: list[int]
    embeds: Tensor
    patients: list[Hashable | None]

    @cached_property
    def owners(self) -> list[frozenset[Hashable]]:
        return [owners_of(self.columns, row) for row in range(len(self.keys))]

    @property
    def pair_embeds(self) -> Tensor:
        """`(P, D)`, unit norm: the image of each row."""
        return self.embeds[self.place]

    @cached_property
    def groups(self) -> Tensor:
        """`(P, 5)`, what the rows share, as `group_ids_of` gives it."""
        return group_ids_of({name: self.columns[name] for name in COLUMNS if name in self.columns})

    @property
    def image_keys(self) -> list[str]:
        """`(N,)`, what each distinct image is by content."""
        return [self.keys[row] for row in self.rows]

    @property
    def clusters(self) -> list[Hashable]:
        """`(N,)`, what is resampled as a whole: the patient where known, else the image."""
        return [patient or key for patient, key in zip(self.patients, self.image_keys, strict=True)]

    def truths(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """The images whose class is known, `(M,)`, by number, and their classes, `(M,)`, by number.

        Raises:
            InputError: A row holds a value that is no class of the task.
        """
        of_images: dict[int, int] = {}
        for row, number in known_truths(task, self.columns).items():
            of_images.setdefault(self.place[row], number)
        images = sorted(of_images)
        return np.array(images, dtype=np.int64), np.array([of_images[i] for i in images], dtype=np.int64)

    def path(self, image: int, data_dir: str | Path | None) -> str | None:
        """The file of an image, relative to the data folder; None where it comes from no file."""
        # As it is stored: nothing is decoded.
        stored = self.pairs.select_columns("images").with_format("arrow")[self.rows[image]]
        found = stored["images"][0][0]["path"].as_py()
        return os.path.relpath(found, Path(data_dir).resolve()) if found and data_dir is not None else None


def plain_columns(pairs: datasets.Dataset) -> dict[str, list[Any]]:
    """The columns that say what an image is, without opening one."""
    columns = pairs.select_columns(_PLAIN)
    return {name: list(columns[name]) for name in _PLAIN}


def embed_split(
    model: Any,
    processor: Any,
    pairs: datasets.Dataset,
    batch_size: int = 64,
    max_images: int | None = None,
    seed: int = 0,
) -> EmbeddedSplit:
    """Embeds each distinct image of some pairs once: Chinese and English reports often share one.

    Args:
        pairs: The columns of `data.schema.FEATURES`, with decoded images.
        max_images: So many, drawn at random, with the pairs that show them; all where left out.
        seed: Of that draw.
    """
    columns = plain_columns(pairs)
    keys = [sha256[0] for sha256 in columns["pixel_sha256"]]
    distinct = list(dict.fromkeys(keys))
    if max_images is not None and max_images < len(distinct):
        drawn = np.random.default_rng(seed).permutation(len(distinct))[:max_images]
        chosen = {distinct[i] for i in drawn}
        pairs = pairs.select([i for i, key in enumerate(keys) if key in chosen])
        return embed_split(model, processor, pairs, batch_size)
    place, rows = number_images(keys)
    patients = [_patient(columns, row) for row in rows]
    embeds = embed_images(model, processor, FirstImages(pairs, rows), batch_size)
    return EmbeddedSplit(pairs, columns, keys, rows, place, embeds, patients)


def number_images(keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """For each row the number of its image, and for each image the first row that shows it."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return [numbers[key] for key in keys], [first[key] for key in numbers]


def owners_of(columns: dict[str, list[Any]], row: int) -> frozenset[Hashable]:
    """Whose a row's images are, as an index compares it: `(source, patient)` where known, and `("group", group_id)`."""
    group = columns["group_id"][row]
    return frozenset({_patient(columns, row), (GROUP, group) if group else None} - {None})


def _patient(columns: dict[str, list[Any]], row: int) -> Hashable | None:
    # Another source's patient of the same name is another person.
    patient = columns["patient_id"][row]
    return (columns["source"][row], patient) if patient else None

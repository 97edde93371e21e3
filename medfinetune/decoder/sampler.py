"""In which order a run sees its rows: questions about one image together, rows of like length together."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain
from typing import Any

import datasets
from torch.utils.data import Sampler
from tqdm import tqdm

from medfinetune.decoder.chat_tokens import images_of
from medfinetune.decoder.collator import MllamaCollator, undecoded

BATCHES_SORTED_AT_ONCE = 50
"""As in transformers: more would make lengths more alike, and less random which rows meet."""


class BatchSampler(Sampler[int]):
    """Row numbers of which each `batch_size` that follow each other make a batch; every row comes once an epoch.

    An epoch's order follows from `seed` and `epoch` alone, so that all processes agree and a run that is resumed goes
    on as it would have.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        images: Sequence[Hashable] | None = None,
        lengths: Sequence[int] | None = None,
        batches_a_step: int = 1,
        seed: int = 0,
    ):
        """
        Args:
            num_rows: Rows of the data set.
            batch_size: Rows that one process encodes at once.
            images: What tells each row's images from others'; rows with equal ones come into one batch, where they
                fit. None for a row that belongs to no other.
            lengths: Tokens of each row; rows of like length come into one batch, and the longest come first, so that
                memory runs out at once or never.
            batches_a_step: Batches of all processes in one optimiser step; they have like lengths too.
            seed: Of the run.
        """
        self._num_rows, self._batch_size, self._seed = num_rows, batch_size, seed
        self._images, self._lengths, self._batches_a_step = images, lengths, batches_a_step
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls it before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self._epoch}")
        batches, rest = self._batches(rng)
        num_odd = len(batches) % self._batches_a_step
        steps = _cut(batches[: len(batches) - num_odd], self._batches_a_step)
        rng.shuffle(steps)
        if self._lengths is not None:
            # Stable: only the step with the longest row changes its place.
            longest = max(map(self._longest, chain(*steps)), default=0)
            steps.sort(key=lambda step: max(map(self._longest, step)) < longest)
        return chain(*chain(*steps), *batches[len(batches) - num_odd :], rest)

    def _batches(self, rng: random.Random) -> tuple[list[list[int]], list[int]]:
        """An epoch's full batches, and the rows of the last one, which is not full."""
        batches: list[list[int]] = []
        waiting: list[list[int]] = []
        for piece in self._pieces(rng):
            waiting.append(piece)
            if len(waiting) >= BATCHES_SORTED_AT_ONCE * self._batch_size:
                full, rest = self._fill(waiting)
                batches += full
                waiting = [rest] if rest else []
        full, rest = self._fill(waiting)
        return batches + full, rest

    def _pieces(self, rng: random.Random) -> list[list[int]]:
        """Rows of one image, at most a batch of them in a piece, in random order."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for row in range(self._num_rows):
            image = None if self._images is None else self._images[row]
            groups[("row", row) if image is None else ("image", image)].append(row)
        pieces = []
        for rows in groups.values():
            rng.shuffle(rows)
            pieces += _cut(rows, self._batch_size)
        rng.shuffle(pieces)
        return pieces

    def _fill(self, pieces: list[list[int]]) -> tuple[list[list[int]], list[int]]:
        """Full batches, each of pieces that fit into it, and the rows that are left; a piece is split only at need."""
        if self._lengths is not None:
            pieces = sorted(pieces, key=self._longest, reverse=True)
        batches: list[list[int]] = []
        batch: list[int] = []
        while pieces:
            room = self._batch_size - len(batch)
            fitting = next((i for i, piece in enumerate(pieces) if len(piece) <= room), None)
            if fitting is None:
                batch += pieces[0][:room]
                pieces[0] = pieces[0][room:]
            else:
                batch += pieces.pop(fitting)
            if len(batch) == self._batch_size:
                batches.append(batch)
                batch = []
        return batches, batch

    def _longest(self, rows: list[int]) -> int:
        return max(self._lengths[row] for row in rows) if self._lengths is not None else 0


def measure_lengths(rows: Any, collator: MllamaCollator, length_column: str = "length") -> list[int]:
    """Tokens of each row as the collator makes them; opens no image.

    Args:
        rows: A `datasets.Dataset`, or a list, of what the collator takes.
        collator: The one that training uses.
        length_column: Where a dataset has this column, that is taken.
    """
    if isinstance(rows, datasets.Dataset):
        if length_column in rows.column_names:
            return list(rows[length_column])
        rows = undecoded(rows)
    progress = tqdm(rows, desc="measuring chats", unit="chat", total=len(rows))
    return [len(collator.encode(row).input_ids) for row in progress]


def identify_images(rows: Any) -> list[Hashable]:
    """For each row what tells its images from others', None where it has none; no file is opened.

    Args:
        rows: A `datasets.Dataset`, or a list, with `images` or `image`: told apart by path, or by a hash of what is
            held.
    """
    return [tuple(map(_identify, images)) or None for images in _images_of(rows)]


def most_images(rows: Any) -> int:
    """The largest number of images that a row has; no file is opened."""
    return max(map(len, _images_of(rows)), default=0)


def _images_of(rows: Any) -> Iterator[Sequence[Any]]:
    if isinstance(rows, datasets.Dataset):
        names = [name for name in ("images", "image") if name in rows.column_names]
        rows = undecoded(rows.select_columns(names)) if names else [{}] * len(rows)
    return (images_of(row) or () for row in rows)


def _identify(image: Any) -> Hashable:
    if not isinstance(image, dict):
        return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
    return image["path"] if image.get("bytes") is None else hashlib.sha256(image["bytes"]).hexdigest()


def _cut(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]

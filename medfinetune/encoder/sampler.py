"""An order of the pairs in which no batch holds one text, or one image, twice."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from medfinetune.data.text import siglip_canonical
from medfinetune.encoder.text import normalize_text

_TRIES = 200


class UniqueCaptionSampler(torch.utils.data.Sampler[int]):
    """Every pair once an epoch, in an order that keeps equal texts and equal images out of each other's batch.

    Texts are dealt to the batches like cards, which parts them as far as their number allows; pairs that still share
    an image or a text are then exchanged with others. It depends on seed and epoch alone, so that all processes draw
    the same order and a resumed run goes on in it.
    """

    def __init__(
        self,
        texts: Sequence[str],
        image_keys: Sequence[str],
        batch_size: int,
        seed: int = 0,
        input_ids: torch.Tensor | None = None,
    ):
        """
        Args:
            texts: Of each pair; those that the encoder cannot tell apart count as one.
            image_keys: Of each pair; the same for the same pixels.
            batch_size: Pairs of a step's batch, of all processes together: process `p` of `n` takes every n-th run of
                `batch_size / n`.
            seed: Of the run.
            input_ids: `(N, max_length)`, the texts as the model gets them: those that are equal up to where they are
                cut off count as one too.
        """
        self._texts = _numbered([siglip_canonical(normalize_text(text)) for text in texts])
        if input_ids is not None:
            self._texts = _joined(self._texts, _numbered([tuple(ids) for ids in input_ids.tolist()]))
        self._images = _numbered(image_keys)
        self._batch_size, self._seed, self._epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self._epoch).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer's data loader before each epoch."""
        self._epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """The pairs in an epoch's order, `(N,)`; each run of `batch_size` is a batch, the last may be smaller."""
        rng = np.random.default_rng((self._seed, epoch))
        shuffled = rng.permutation(len(self))
        num_batches, rest = divmod(len(self), self._batch_size)
        last, dealt = shuffled[:rest], shuffled[rest:]
        # Equal texts side by side, in a new order of texts each epoch: dealt in turn, they land in different batches.
        rank = rng.permutation(self._texts.max(initial=0) + 1)
        dealt = dealt[np.argsort(rank[self._texts[dealt]], kind="stable")]
        batches = np.concatenate([dealt[start::num_batches] for start in range(num_batches)] or [dealt])
        order = np.concatenate([batches, last]).astype(np.int64)
        self._exchange(order, rng)
        for start in range(0, len(order), self._batch_size):
            rng.shuffle(order[start : start + self._batch_size])
        return order

    def num_repeats(self, order: np.ndarray) -> int:
        """Pairs that share their text or image with an earlier pair of their batch."""
        return len(self._repeats(order))

    def _repeats(self, order: np.ndarray) -> list[int]:
        found = []
        for start in range(0, len(order), self._batch_size):
            texts, images = set(), set()
            for place in range(start, min(start + self._batch_size, len(order))):
                text, image = self._texts[order[place]], self._images[order[place]]
                if text in texts or image in images:
                    found.append(place)
                texts.add(text)
                images.add(image)
        return found

    def _exchange(self, order: np.ndarray, rng: np.random.Generator) -> None:
        """Swaps pairs that clash with ones of other batches, in place, where neither then clashes."""
        num_batches = -(-len(order) // self._batch_size)
        counts = [
            [Counter(keys[order[start : start + self._batch_size]].tolist()) for keys in (self._texts, self._images)]
            for start in range(0, len(order), self._batch_size)
        ]
        # A text that stands in more pairs than there are batches must repeat, and dealing has spread it already.
        hopeless = [np.bincount(keys) > num_batches for keys in (self._texts, self._images)]

        def keys_of(place: int) -> tuple[int, int]:
            return int(self._texts[order[place]]), int(self._images[order[place]])

        def fits(place: int, batch: int, instead_of: int) -> bool:
            return all(
                count[key] - (key == leaving) == 0
                for count, key, leaving in zip(counts[batch], keys_of(place), keys_of(instead_of), strict=True)
            )

        for place in self._repeats(order):
            if any(hopeless[kind][key] for kind, key in enumerate(keys_of(place))):
                continue
            batch = place // self._batch_size
            for other in rng.integers(len(order), size=_TRIES).tolist():
                its_batch = other // self._batch_size
                if its_batch != batch and fits(place, its_batch, other) and fits(other, batch, place):
                    for kind in range(2):
                        mine, its = keys_of(place)[kind], keys_of(other)[kind]
                        counts[batch][kind].update({mine: -1})
                        counts[batch][kind][its] += 1
                        counts[its_batch][kind].update({its: -1})
                        counts[its_batch][kind][mine] += 1
                    order[place], order[other] = order[other], order[place]
                    break


def pair_keys(dataset: Any) -> tuple[list[str], list[str]]:
    """Text and image key of every pair.

    Args:
        dataset: A `PairCache`, or a `datasets.Dataset` with `text` and `pixel_sha256`.
    """
    if hasattr(dataset, "image_keys"):
        return list(dataset.texts), list(dataset.image_keys)
    columns = dataset.select_columns(["text", "pixel_sha256"])
    return list(columns["text"]), [hashes[0] for hashes in columns["pixel_sha256"]]


def _numbered(keys: Sequence[Hashable]) -> np.ndarray:
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Numbers that are equal where either is, also by way of a third."""
    parent = list(range(one.max(initial=-1) + 1))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[int, int] = {}
    for mine, its in zip(one.tolist(), other.tolist(), strict=True):
        parent[root(mine)] = root(first.setdefault(its, mine))
    return _numbered([root(number) for number in one.tolist()])

"""The cases that are evaluated: pairs and chats of one split, side by side."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from medfinetune.data.load import load_chats, load_pairs
from medfinetune.errors import InputError


def load_cases(
    data_dir: str | Path, split: str, tasks: Sequence[str], max_cases: int | None = None, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Opens the pairs of one split, and the chats of the same ids in the same order.

    Args:
        data_dir: The folder that `prepare` wrote.
        split: `train`, `validation` or `test`.
        tasks: Keeps the pairs of these tasks.
        max_cases: Draws so many at random; all where left out.
        seed: Of that draw.

    Raises:
        InputError: The folder, a file or a column is missing, nothing is left, or a pair has no chat.
    """
    pairs, chats = load_pairs(data_dir, split), load_chats(data_dir, split)
    chosen = [i for i, task in enumerate(pairs["task"]) if task in tasks]
    if not chosen:
        raise InputError(
            f"{data_dir}: the split {split} has no pair of the tasks {', '.join(tasks)} "
            f"(it has {', '.join(sorted(set(pairs['task']))) or 'no pair at all'})"
        )
    if max_cases is not None and max_cases < len(chosen):
        drawn = np.random.default_rng(seed).permutation(len(chosen))[:max_cases]
        chosen = sorted(chosen[i] for i in drawn)
    pairs = pairs.select(chosen)
    places = {identity: i for i, identity in enumerate(chats["id"])}
    missing = [identity for identity in pairs["id"] if identity not in places]
    if missing:
        raise InputError(f"{data_dir}: the pair {missing[0]} has no chat; recipes/chats.py makes them anew")
    return pairs, chats.select([places[identity] for identity in pairs["id"]])


def load_other_splits(
    data_dir: str | Path, split: str, tasks: Sequence[str]
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The training and the validation pairs of some tasks, to learn and to choose from.

    Args:
        data_dir: The folder that `prepare` wrote.
        split: The one that is evaluated: nothing is ever fitted on it.
        tasks: Keeps the pairs of these tasks.

    Returns:
        Each None where it is the evaluated split, or holds no such pair.
    """
    splits = load_pairs(data_dir)
    found: list[datasets.Dataset | None] = []
    for name in ("train", "validation"):
        pairs = splits.get(name) if name != split else None
        rows = [i for i, task in enumerate(pairs["task"]) if task in tasks] if pairs is not None else []
        found.append(pairs.select(rows) if rows else None)
    return found[0], found[1]


def pixel_keys(pairs: datasets.Dataset) -> list[tuple[str, ...]]:
    """What each pair's images are by content: equal pixels in any order give equal keys."""
    return [tuple(sorted(sha256)) for sha256 in pairs["pixel_sha256"]]


def image_paths(pairs: datasets.Dataset, data_dir: str | Path) -> list[str]:
    """Each pair's first image, relative to the data folder; nothing is decoded."""
    undecoded = pairs.select_columns("images").cast_column("images", datasets.List(datasets.Image(decode=False)))
    return [os.path.relpath(row["images"][0]["path"], Path(data_dir).resolve()) for row in undecoded]


class FirstImages(Sequence[Image.Image]):
    """The first image of some rows, opened when it is asked for: a large split does not fit in memory."""

    def __init__(self, pairs: datasets.Dataset, rows: Sequence[int]):
        self._images = pairs.select_columns("images")
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self._images[self._rows[i]]["images"][0]


class Chats(Sequence[dict[str, Any]]):
    """Chats as `{"images", "messages"}`, each with its own images or with those of another; opened when asked for."""

    def __init__(self, chats: datasets.Dataset, image_rows: Sequence[int] | None = None):
        self._chats = chats
        self._image_rows = range(len(chats)) if image_rows is None else image_rows
        self._messages = chats["messages"]
        self._images = chats.select_columns("images")

    def __len__(self) -> int:
        return len(self._image_rows)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return {"images": self._images[self._image_rows[i]]["images"], "messages": self._messages[i]}


def references(chats: datasets.Dataset) -> list[str]:
    """The words of the assistant's last turn, which generated text is held against.

    Raises:
        InputError: A chat does not end with the assistant's turn.
    """
    texts = []
    for identity, messages in zip(chats["id"], chats["messages"], strict=True):
        if not messages or messages[-1]["role"] != "assistant":
            raise InputError(f"chat {identity}: does not end with the assistant's turn")
        content = messages[-1]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts.append(" ".join(part["text"] for part in parts if part["type"] == "text"))
    return texts

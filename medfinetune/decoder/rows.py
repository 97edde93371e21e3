"""What a run puts between dataset and model: rows that open, and never no image."""

import sys
from typing import Any

import datasets
import torch
from PIL import Image
from transformers import MllamaConfig

from medfinetune.errors import InputError

_NUM_TRIES = 8
# What Pillow raises for files that are missing, cut short or damaged.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class ReadableRows(torch.utils.data.Dataset):
    """The rows of a dataset; one whose image no longer opens gives way to the next that does, with one line.

    A run of days does not end for one lost file, but it does where the folder is gone.
    """

    def __init__(self, rows: datasets.Dataset):
        """
        Args:
            rows: A dataset with `id` and `images`, which are decoded at each access.
        """
        self.rows = rows
        self._told: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """
        Raises:
            InputError: Neither this row's image nor those of the next rows open.
        """
        for place in range(number, number + _NUM_TRIES):
            place %= len(self.rows)
            try:
                return self.rows[place]
            except _UNREADABLE as error:
                problem = f"chat {self._id(place)}: its image no longer opens ({' '.join(str(error).split())[:150]})"
            if place not in self._told:
                self._told.add(place)
                print(f"{problem}; the row after it stands in for it", file=sys.stderr)
        raise InputError(f"{problem}, nor do those of {_NUM_TRIES - 1} rows before it; is the data folder still there?")

    def _id(self, place: int) -> str:
        return str(self.rows.select_columns(["id"])[place]["id"])


def with_empty_image(batch: dict[str, Any], config: MllamaConfig) -> dict[str, Any]:
    """A batch of text alone with the empty image slot that such rows have beside rows with images.

    Its rows pass the model as they pass it alone. But processes that train together must run the same layers in the
    same order, and without any image the tower and the cross-attention layers would be left out.

    Args:
        batch: `input_ids` `(B, T)` and what belongs to them; one that has `pixel_values` is returned as it is.
        config: The model's.
    """
    if "pixel_values" in batch:
        return batch
    (size, length), device = batch["input_ids"].shape, batch["input_ids"].device
    tiles, side = config.vision_config.max_num_tiles, config.vision_config.image_size
    exists = torch.zeros(size, 1, tiles, dtype=torch.long, device=device)
    exists[..., 0] = 1
    return batch | {
        "pixel_values": torch.zeros(size, 1, tiles, 3, side, side, device=device),
        "aspect_ratio_ids": torch.zeros(size, 1, dtype=torch.long, device=device),
        "aspect_ratio_mask": exists,
        "cross_attention_mask": torch.zeros(size, length, 1, tiles, dtype=torch.long, device=device),
    }


def describe_longest(batch: dict[str, Any], ids: list[str]) -> str:
    """Which row of a batch has most tokens: what memory follows."""
    # On the host: on the device even a sum would need memory.
    batch = {name: tensor.cpu() for name, tensor in batch.items()}
    lengths = batch["attention_mask"].sum(dim=1)
    longest = int(lengths.argmax())
    name = f"chat {ids[longest]}" if ids else f"row {longest}"
    images = batch["aspect_ratio_ids"].ne(0).sum(dim=1)[longest] if "aspect_ratio_ids" in batch else 0
    return f"{name} ({int(lengths[longest])} tokens, {int(images)} images)"

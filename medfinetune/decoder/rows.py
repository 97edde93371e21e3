"""What a run puts between dataset and model: rows that open, and never no image."""

import sys
from collections.abc import Container
from io import BytesIO
from itertools import chain
from typing import Any

import datasets
import torch
from PIL import Image
from transformers import MllamaConfig

from medfinetune.decoder.chat_tokens import images_of, name_of
from medfinetune.errors import InputError

_NUM_IMAGES = 8
# What Pillow raises for files that are missing, cut short or damaged.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class ReadableRows(torch.utils.data.Dataset):
    """The rows of a dataset; one whose image no longer opens gives way to the next that does, with one line.

    A run of days does not end for one lost file, whose questions may follow each other, but it does where the folder
    is gone.
    """

    def __init__(self, rows: datasets.Dataset, effect: str = ""):
        """
        Args:
            rows: A dataset with `id` and `images`, which are decoded at each access.
            effect: What else is to be said where a row gives way.
        """
        self.rows, self._effect = rows, effect
        self.replaced: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """
        Raises:
            InputError: Neither this row's images nor those of many after it open.
        """
        try:
            return self.rows[number]
        except _UNREADABLE as error:
            lost = self._lost_images(number)
            if not lost:
                raise
            problem = f"chat {self._id(number)}: its image no longer opens ({' '.join(str(error).split())[:150]})"
        place = self._readable_after(number, lost)
        if place is None:
            raise InputError(f"{problem}, nor do {len(lost) - 1} others after it; is the data folder still there?")
        if number not in self.replaced:
            self.replaced.add(number)
            print(f"{problem}; chat {self._id(place)} stands in for it{self._effect}", file=sys.stderr)
        return self.rows[place]

    def _readable_after(self, number: int, lost: set[Any]) -> int | None:
        """The next row whose images open; `lost` takes up those that do not, and too many of them are the end."""
        for place in chain(range(number + 1, len(self.rows)), range(number)):
            lost |= self._lost_images(place, lost)
            if len(lost) >= _NUM_IMAGES:
                return None
            if not self._images(place).keys() & lost:
                return place
        return None

    def _lost_images(self, place: int, known: Container[Any] = ()) -> set[Any]:
        """Those of a row's images that do not open now, `known` ones left out."""
        return {name for name, file in self._images(place).items() if name not in known and not _opens(file)}

    def _images(self, place: int) -> dict[Any, Any]:
        """By their path, or where the dataset itself holds them by their place, the files of a row's images."""
        [row] = self.rows.with_format("arrow")[place].to_pylist()  # which opens nothing
        held = [image for image in images_of(row) or [] if isinstance(image, dict)]
        return dict(
            ((place, i), BytesIO(image["bytes"])) if image["bytes"] else (image["path"], image["path"])
            for i, image in enumerate(held)
        )

    def _id(self, place: int) -> str:
        return name_of(self.rows.select_columns([n for n in ("id",) if n in self.rows.column_names])[place])


def _opens(file: Any) -> bool:
    try:
        with Image.open(file) as image:
            image.load()
    except _UNREADABLE:
        return False
    return True


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

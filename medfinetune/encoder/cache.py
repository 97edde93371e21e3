"""Images decoded and resized once, texts tokenised once: an epoch never waits for Pillow."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.labels import COLUMNS, group_ids_of
from medfinetune.errors import InputError


class PairCache(torch.utils.data.Dataset):
    """Rows of `pixels` (uint8, at the model's size), `input_ids` and `group_ids`, from a memory-mapped file.

    The pixels are those that the image processor makes before it rescales and normalises, so what the collator
    turns them into is identical. The file holds every distinct image once, named by its content; it is made again
    when the images or the size change. `columns` holds what is known of the rows besides: texts, labels, patients.
    """

    def __init__(self, pairs: datasets.Dataset, processor: Any, cache_dir: Path, max_length: int | None = None):
        """
        Args:
            pairs: Rows with `images`, `pixel_sha256`, `text` and `language`, as `load_pairs` gives them.
            processor: A `SiglipProcessor`.
            cache_dir: Where the file is kept; it takes `3 * H * W` bytes an image.
            max_length: Tokens of every text; as for `SigLIPCollator`.

        Raises:
            InputError: No pairs, or an image that no longer opens (its row is named).
        """
        if len(pairs) == 0:
            raise InputError("no pairs to train on")
        names = [name for name in ("id", "language", "metadata", *COLUMNS) if name in pairs.column_names]
        plain = pairs.select_columns(names)
        self.columns = {name: list(plain[name]) for name in names}
        self.texts, self.languages = self.columns["text"], self.columns["language"]
        self.image_keys = [hashes[0] for hashes in self.columns["pixel_sha256"]]
        self.group_ids = group_ids_of({name: self.columns[name] for name in COLUMNS if name in names})
        self._collator = SigLIPCollator(processor, max_length)
        self.input_ids = self._collator.texts(self.texts)["input_ids"].to(torch.int32)
        size = processor.image_processor.size
        keys = sorted(set(self.image_keys))
        self._row_of = {key: row for row, key in enumerate(keys)}
        first_pair = {key: i for i, key in reversed(list(enumerate(self.image_keys)))}
        path = cache_dir / f"siglip_{size['width']}px_{len(keys)}.uint8"
        shape = (len(keys), size["height"], size["width"], 3)
        index = path.with_suffix(".json")
        if not index.is_file() or json.loads(index.read_text()) != keys:
            self._fill(path, shape, [first_pair[key] for key in keys], pairs)
            index.write_text(json.dumps(keys))
        self._pixels = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pixels = self._pixels[self._row_of[self.image_keys[i]]]
        return {"pixels": pixels, "input_ids": self.input_ids[i], "group_ids": self.group_ids[i]}

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """What `SigLIPCollator` gives: `pixel_values`, `input_ids` and `group_ids`."""
        # One image at a time stays within the processor's cache, and `default_collate` lays the batch straight into
        # the memory that a worker shares with the trainer.
        return default_collate(
            [
                {
                    "pixel_values": self._collator.normalise(torch.from_numpy(np.array(row["pixels"]))[None])[0],
                    "input_ids": row["input_ids"].long(),
                    "group_ids": row["group_ids"],
                }
                for row in rows
            ]
        )

    def _fill(self, path: Path, shape: tuple[int, ...], rows: list[int], pairs: datasets.Dataset) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")
        pixels = np.memmap(part, dtype=np.uint8, mode="w+", shape=shape)
        try:
            for target, row in enumerate(tqdm(rows, desc="resizing images", unit="image")):
                try:
                    pixels[target] = self._collator.resize(pairs[row]["images"][0])
                except OSError as error:
                    name = pairs.select_columns(["id"])[row]["id"]
                    raise InputError(f"pair {name}: its image does not open ({error})") from error
            pixels.flush()
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

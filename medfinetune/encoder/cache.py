"""Images decoded and resized once, texts tokenised once: an epoch never waits for Pillow."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.labels import COLUMNS, group_ids_of
from medfinetune.errors import InputError

_IMAGES_A_WORKER = 64
"""So many are resized in the time that a worker takes to start, and a few are not worth one."""
_AFTER_RESIZING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class PairCache(torch.utils.data.Dataset):
    """Rows of `pixels` (uint8, at the model's size), `input_ids` and `group_ids`, from a memory-mapped file.

    The pixels are those that the image processor makes before it rescales and normalises, so what the collator
    turns them into is identical. The file holds every distinct image once, as planes, and is named by all that decides
    its bytes: the images and how they are resized. It appears under that name when it is whole, so that a run that is
    killed, or several that start together, leave nothing that another would take for its own. `columns` holds what is
    known of the rows besides: texts, labels, patients.
    """

    def __init__(self, pairs: datasets.Dataset, processor: Any, cache_dir: Path, max_length: int | None = None):
        """
        Args:
            pairs: Rows with `images`, `pixel_sha256`, `text` and `language`, as `load_pairs` gives them.
            processor: A `SiglipProcessor`.
            cache_dir: Where the file is kept; it takes `3 * H * W` bytes an image. It is made by all cores where it is
                missing.
            max_length: Tokens of every text; as for `SigLIPCollator`.

        Raises:
            InputError: No pairs, an image that no longer opens (its row is named), or a file that cannot be written.
        """
        if len(pairs) == 0:
            raise InputError("no pairs to train on")
        names = [name for name in ("id", "language", "metadata", *COLUMNS) if name in pairs.column_names]
        plain = pairs.select_columns(names)
        self.columns = {name: list(plain[name]) for name in names}
        self.texts, self.languages = self.columns["text"], self.columns["language"]
        self.image_keys = [hashes[0] for hashes in self.columns["pixel_sha256"]]
        self._collator = SigLIPCollator(processor, max_length)
        self.input_ids = self._collator.texts(self.texts)["input_ids"].to(torch.int32)
        known = {name: self.columns[name] for name in COLUMNS if name in names}
        self.group_ids = group_ids_of(known, self.input_ids)
        keys = sorted(set(self.image_keys))
        self._row_of = {key: row for row, key in enumerate(keys)}
        size = processor.image_processor.size
        shape = (len(keys), 3, size["height"], size["width"])
        path = cache_dir / _file_name(processor.image_processor, keys)
        if not path.is_file() or path.stat().st_size != np.prod(shape):
            first_pair = {key: i for i, key in reversed(list(enumerate(self.image_keys)))}
            self._fill(path, _Resized(pairs, [first_pair[key] for key in keys], self._collator))
        # (N, 3, H, W) in the file, (N, H, W, 3) to look at: `normalise` wants planes, and then has them for nothing.
        self._pixels = np.memmap(path, dtype=np.uint8, mode="r", shape=shape).transpose(0, 2, 3, 1)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pixels = self._pixels[self._row_of[self.image_keys[i]]]
        row = {"pixels": pixels, "input_ids": self.input_ids[i], "group_ids": self.group_ids[i]}
        return row | {"id": self.columns["id"][i]}

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

    def _fill(self, path: Path, resized: "_Resized") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{uuid4().hex}")
        try:
            # Written, not mapped: a full disk is then an error, where a mapping would end the process by a signal.
            with part.open("wb") as file:
                for planes in tqdm(_in_order(resized), total=len(resized), desc="resizing images", unit="image"):
                    if isinstance(planes, str):
                        raise InputError(planes)
                    file.write(planes)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise InputError(f"{path}: the resized images cannot be written ({error})") from error
        finally:
            part.unlink(missing_ok=True)


class _Resized(torch.utils.data.Dataset):
    """Images at the model's size, `(3, H, W)`, uint8; in the place of one that does not open, what to say of it."""

    def __init__(self, pairs: datasets.Dataset, rows: list[int], collator: SigLIPCollator):
        self._pairs, self._rows, self._collator = pairs, rows, collator

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> np.ndarray | str:
        row = self._rows[i]
        try:
            return np.ascontiguousarray(self._collator.resize(self._pairs[row]["images"][0]).transpose(2, 0, 1))
        except Exception as error:  # Pillow's decoders raise many kinds
            name = self._pairs.select_columns(["id"])[row]["id"]
            return f"pair {name}: its image does not open ({error})"


def _in_order(resized: _Resized) -> Iterator[np.ndarray | str]:
    """Every item in its turn, made by as many processes as there are cores."""
    num_workers = min(len(os.sched_getaffinity(0)), len(resized) // _IMAGES_A_WORKER)
    return iter(DataLoader(resized, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is))


def _as_it_is(item: np.ndarray | str) -> np.ndarray | str:
    return item


def _file_name(image_processor: Any, keys: list[str]) -> str:
    """The same for the same bytes: images, size, way of resizing, and the order in the file."""
    settings = {name: value for name, value in image_processor.to_dict().items() if name not in _AFTER_RESIZING}
    kind = type(image_processor).__name__  # `to_dict` gives one name to Pillow's and to torchvision's
    decides = json.dumps(["planes", kind, settings, keys], sort_keys=True, default=str)
    digest = hashlib.sha256(decides.encode()).hexdigest()[:16]
    return f"siglip_{image_processor.size['width']}px_{digest}.uint8"

"""Projected features of images, kept across epochs, where neither tower nor projector trains.

An entry is named by its content: pixels, arrangement of the tiles, the weights that encode them and the precision they
compute in. It holds the image's own tiles and one of those that pad it, as they were computed.
"""

import hashlib
import os
import time
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import datasets
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.mllama.image_processing_pil_mllama import get_optimal_tiled_canvas

from medfinetune.decoder.chat_tokens import images_of
from medfinetune.decoder.collator import undecoded
from medfinetune.decoder.cross_attention import mllama_inside
from medfinetune.decoder.rows import ReadableRows
from medfinetune.errors import InputError

GIB = 2**30
_HOUR = 3600


class MemoryStore:
    """Tensors by name in this process's memory; the one that was not asked for the longest goes first."""

    def __init__(self, max_bytes: int):
        self._max_bytes, self.num_bytes = max_bytes, 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, key: str) -> Tensor | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: str, states: Tensor) -> None:
        if states.nbytes > self._max_bytes or key in self._entries:
            return
        while self.num_bytes + states.nbytes > self._max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1].nbytes
        self._entries[key] = states
        self.num_bytes += states.nbytes


class DiskStore:
    """As `MemoryStore`, each in a file of its own, which any process may read, write or remove at any time."""

    def __init__(self, folder: Path, max_bytes: int, num_processes: int = 1):
        """
        Args:
            folder: Made where it is missing.
            max_bytes: Of all files together.
            num_processes: How many write into the folder.

        Raises:
            InputError: The folder cannot be written.
        """
        self._folder, self._max_bytes, self._num_processes = folder, max_bytes, num_processes
        self._full = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob("*.part"):  # left by a run that was killed
                if time.time() - part.stat().st_mtime > _HOUR:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"vision_cache: {folder} cannot be written ({error})") from error
        self._num_bytes = sum(size for _, size, _ in self._files())

    def get(self, key: str) -> Tensor | None:
        path = self._path(key)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                states = file.get_tensor("states")
                whole = (file.metadata() or {}).get("checksum") == _checksum(states)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError):
            whole = False
        return states if whole else None  # what is damaged is made again and written over

    def put(self, key: str, states: Tensor) -> None:
        data = safetensors.torch.save({"states": states}, {"checksum": _checksum(states)})
        if self._full or len(data) > self._max_bytes:
            return
        part = self._folder / f"{key}.{uuid.uuid4().hex}.part"
        try:
            self._make_room(len(data))
            part.write_bytes(data)
            part.replace(self._path(key))
        except OSError as error:
            part.unlink(missing_ok=True)
            self._full = True
            warnings.warn(f"vision_cache: {self._folder}: nothing more is stored ({error})", stacklevel=2)
        # The other processes write about as much, unseen from here.
        self._num_bytes += len(data) * self._num_processes

    def _make_room(self, size: int) -> None:
        if self._num_bytes + size <= self._max_bytes:
            return
        files = sorted(self._files())
        self._num_bytes = sum(size for _, size, _ in files)
        for _, freed, path in files:
            if self._num_bytes + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            self._num_bytes -= freed

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process removed it
                continue
            yield status.st_mtime_ns, status.st_size, path

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


class VisionCache:
    """Encodes and projects images that it has not seen, and remembers the others."""

    def __init__(self, store: MemoryStore | DiskStore):
        self._store = store
        self._weights: tuple[Any, str] = (None, "")

    @torch.no_grad()
    def projected(self, mllama: Any, pixel_values: Tensor, ratio_ids: Tensor, tile_mask: Tensor) -> Tensor:
        """As the projector gives them.

        Args:
            mllama: A `MllamaModel`.
            pixel_values: `(B, N, 4, 3, H, W)`.
            ratio_ids: `(B, N)`.
            tile_mask: `(B, N, 4)`, 1 on tiles that exist.

        Returns:
            `(B, N, 4, patches, hidden)`, without a gradient.
        """
        images, num_slots = pixel_values.flatten(0, 1), pixel_values.shape[2]
        arrangements = [int(ratio_id) for ratio_id in ratio_ids.flatten()]
        num_tiles = tile_mask.flatten(0, 1).sum(dim=1).tolist()
        made_by = self._fingerprint(mllama)
        keys = [
            _key(made_by, image, ratio_id, tiles)
            for image, ratio_id, tiles in zip(images, arrangements, num_tiles, strict=True)
        ]
        entries = {key: self._store.get(key) for key in dict.fromkeys(keys)}
        missing = [keys.index(key) for key, entry in entries.items() if entry is None]
        if missing:
            features = mllama.vision_model(
                pixel_values=images[missing][:, None],
                aspect_ratio_ids=ratio_ids.flatten()[missing][:, None],
                aspect_ratio_mask=tile_mask.flatten(0, 1)[missing][:, None],
            ).last_hidden_state
            for i, states in zip(missing, mllama.multi_modal_projector(features[:, 0]), strict=True):
                entries[keys[i]] = _without_repeats(states, num_tiles[i])
                self._store.put(keys[i], entries[keys[i]].cpu())
        device = mllama.multi_modal_projector.weight.device
        whole = {key: _in_slots(entry.to(device, non_blocking=True), num_slots) for key, entry in entries.items()}
        return torch.stack([whole[key] for key in keys]).unflatten(0, pixel_values.shape[:2])

    def _fingerprint(self, mllama: Any) -> str:
        """A hash of what encodes: made anew when a weight was written to or replaced."""
        parts = (mllama.vision_model, mllama.multi_modal_projector)
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if state != self._weights[0]:
            digest = hashlib.sha256()
            for tensor in tensors:
                digest.update(_header(tensor))
                digest.update(_bytes(tensor))
            self._weights = (state, digest.hexdigest())
        device = tensors[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return f"{self._weights[1]} {autocast}"


def use_vision_cache(
    model: nn.Module,
    kind: Literal["off", "memory", "disk"],
    gib: float = 0.0,
    folder: str | Path = "",
    num_processes: int = 1,
) -> None:
    """Gives a Mllama a cache of image features, or takes it away.

    Args:
        model: A Mllama, with or without adapters, made ready by `use_exact_rows`.
        kind: `memory` keeps them in this process, `disk` in files that all processes and later runs share.
        gib: How much may be kept.
        folder: Where files are kept.
        num_processes: How many share the folder.

    Raises:
        InputError: The tower or the projector trains, or their weights are shared out among processes (ZeRO-3).
    """
    mllama = mllama_inside(model)
    mllama.vision_cache = None
    if kind == "off":
        return
    for name, part in (("vision tower", mllama.vision_model), ("projector", mllama.multi_modal_projector)):
        if any(parameter.requires_grad for parameter in part.parameters()):
            raise InputError(
                f"vision_cache: {kind} keeps features, but the {name} trains, so they change at each step; freeze it "
                "(use_peft: true does) or set vision_cache: off"
            )
    if is_deepspeed_zero3_enabled():
        raise InputError(
            f"vision_cache: {kind} does not go with ZeRO stage 3, where all processes must run the tower together; "
            "set vision_cache: off or use stage 2"
        )
    size = int(gib * GIB)
    mllama.vision_cache = VisionCache(
        MemoryStore(size) if kind == "memory" else DiskStore(Path(folder), size, num_processes)
    )


def _key(made_by: str, image: Tensor, ratio_id: int, num_tiles: int) -> str:
    own, padding = image[:num_tiles], image[num_tiles:]
    content = image if padding.any() else own
    digest = hashlib.sha256(f"{made_by} {ratio_id} {num_tiles}".encode())
    digest.update(_header(content))
    digest.update(_bytes(content))
    return digest.hexdigest()


def _header(tensor: Tensor) -> bytes:
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode()


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().contiguous().flatten()
    return memoryview(plain.view(torch.uint8).numpy())


def _checksum(states: Tensor) -> str:
    # Any flipped bit changes the sum, and it costs a single pass at the memory's rate.
    data = states.contiguous().flatten().view(torch.uint8)
    whole = len(data) // 8 * 8
    return f"{tuple(states.shape)} {int(data[:whole].view(torch.int64).sum())} {int(data[whole:].sum())}"


def _without_repeats(states: Tensor, num_tiles: int) -> Tensor:
    """The image's tiles, and one of the padding where that is all alike; `(shown, patches, hidden)`."""
    padding = states[num_tiles:]
    alike = len(padding) < 2 or torch.equal(padding[1:], padding[:1].expand_as(padding[1:]))
    return states[: num_tiles + 1].clone() if alike else states


def _in_slots(entry: Tensor, num_slots: int) -> Tensor:
    return torch.cat([entry, entry[-1:].expand(num_slots - len(entry), -1, -1)]) if len(entry) < num_slots else entry


def describe_size(mllama: Any, image_processor: Any, rows: datasets.Dataset, kind: str, gib: float) -> str:
    """What a cache of all images of `rows` would take, from the sizes of at most 200 of them, and its bound."""
    names: set[Any] = set()
    for number, batch in enumerate(undecoded(rows).iter(batch_size=1000)):
        for i, images in enumerate(batch.get("images") or [[image] for image in batch.get("image", [])]):
            names |= {image["path"] or (number, i, place) for place, image in enumerate(images or [])}
    readable = ReadableRows(rows)
    tile_px, tiles = image_processor.size["height"], []
    for i in range(0, len(rows), max(1, len(rows) // 200)):
        for image in images_of(readable[i]) or []:
            canvas = get_optimal_tiled_canvas(image.height, image.width, image_processor.max_image_tiles, tile_px)
            tiles.append(min(canvas[0] * canvas[1] // tile_px**2 + 1, image_processor.max_image_tiles))
    a_tile = mllama.vision_model.num_patches * mllama.multi_modal_projector.out_features * mllama.dtype.itemsize
    an_image = a_tile * sum(tiles) / max(1, len(tiles))
    return (
        f"vision_cache: {kind}: about {len(names) * an_image / GIB:.2f} GiB for {len(names):,} images "
        f"({an_image / 1e6:.1f} MB each: {a_tile / 1e6:.2f} MB a tile); vision_cache_gib keeps at most {gib:g} GiB"
        + (" in each process" if kind == "memory" else "")
    )

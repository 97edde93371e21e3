"""Training images by what they look like: their embeddings in FAISS, and the reports that hang on them."""

import json
import shutil
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
from torch import Tensor

from medfinetune.errors import InputError
from medfinetune.inference.cells import cells_of
from medfinetune.inference.known_pixels import KnownPixels
from medfinetune.inference.labels import LabelTask
from medfinetune.inference.rows import take_rows

INDEX_FILE = "index.json"
EVIDENCE_FILE = "evidence.jsonl"
_FAISS_FILE, _ROWS, _LABELS_FILE = "index.faiss", "rows", "labels.safetensors"
_NAME, _VERSION = "image", 2
_MAX_FLAT = 1_000_000
_ROWS_AT_ONCE = 10_000
_REBUILD = "name what it was made of, or make it anew with recipes/index.py and --overwrite true"
_SPARE = 4
"""Images looked up beyond those that are wanted, as some may be the query's own patient's."""

# FAISS's own default is 20, but this build's 128,000: without BLAS a batch of queries took ten times as long.
faiss.cvar.distance_compute_blas_threshold = 20


@dataclass(frozen=True)
class Match:
    """An image of the index that is like a query.

    Attributes:
        number: Its row.
        similarity: Cosine, rounded to six digits: beyond them it depends on how many queries were asked at once.
        row: As in `FEATURES`.
    """

    number: int
    similarity: float
    row: dict[str, Any]


class ImageIndex:
    """Embeddings of distinct images, searched by inner product.

    Attributes:
        rows: The columns of `FEATURES`.
        info: What `index.json` holds.
        labels: The tasks that images are graded for.
    """

    def __init__(
        self, rows: datasets.Dataset, searched: datasets.Dataset, info: dict[str, Any], labels: Sequence[LabelTask] = ()
    ):
        """Made by `build` and `load`; `searched` are the rows with the FAISS index, which may not be saved with it."""
        self.rows, self.info, self.labels = rows, info, list(labels)
        self._searched = searched

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def build(
        cls,
        embeds: np.ndarray,
        rows: datasets.Dataset,
        index_type: Literal["auto", "flat", "ivf"] = "auto",
        labels: Sequence[LabelTask] = (),
        seed: int = 0,
    ) -> "ImageIndex":
        """Puts embeddings into FAISS.

        Args:
            embeds: `(N, D)`, unit norm, fp32.
            rows: The columns of `FEATURES`, `N` rows.
            index_type: `flat` compares with every image; `ivf` with those of the nearest cells, so many that at least
                99% of the nearest ten are found in a sample; `auto` is flat up to 1,000,000 images.
            labels: Tasks to keep beside it.
            seed: Draws what the cells are learned from and probed with.

        Raises:
            InputError: There is no image.
        """
        if not len(embeds):
            raise InputError("there is no image to index")
        embeds = np.ascontiguousarray(embeds, dtype=np.float32)
        info: dict[str, Any] = {"version": _VERSION, "metric": "inner_product", "num_images": len(embeds)}
        if index_type == "ivf" or (index_type == "auto" and len(embeds) > _MAX_FLAT):
            index, found = cells_of(embeds, np.random.default_rng(seed))
            info |= {"index_type": "ivf", **found}
            how: dict[str, Any] = {"custom_index": index}
        else:
            info["index_type"] = "flat"
            how = {"string_factory": "Flat", "metric_type": faiss.METRIC_INNER_PRODUCT}
        searched = rows.with_format(None)
        with _quiet():
            searched.add_faiss_index_from_external_arrays(embeds, _NAME, batch_size=_ROWS_AT_ONCE, **how)
        return cls(rows, searched, info, labels)

    def search(self, embeds: np.ndarray, k: int, probe_more: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The nearest images, whoever's they are.

        Args:
            embeds: `(Q, D)`, unit norm, fp32.
            k: At most as many as there are images.
            probe_more: Times as many cells are looked into as usual; nothing to a flat index.

        Returns:
            Cosines `(Q, k)`, falling, and rows `(Q, k)`; -1 where the cells hold no more.
        """
        how = {}
        if self.info["index_type"] == "ivf":
            probed = min(self.info["num_cells"], self.info["nprobe"] * probe_more)
            how["params"] = faiss.SearchParametersIVF(nprobe=probed)
        found = self._searched.search_batch(_NAME, np.ascontiguousarray(embeds, dtype=np.float32), k, **how)
        return found.total_scores, found.total_indices

    def nearest(
        self,
        embeds: np.ndarray,
        k: int,
        pixel_keys: Sequence[Collection[str]] | None = None,
        patients: Sequence[Hashable | None] | None = None,
    ) -> list[list[Match]]:
        """The nearest images that are neither the query's own nor of its owners; searched wider until `k` remain.

        Args:
            embeds: `(Q, D)`, unit norm.
            k: How many; fewer where the index has no more.
            pixel_keys: For each query the hashes of its images' pixels. Where the index knows such an image, the
                images of that image's patients, studies and strips are left out too.
            patients: For each query None, `(source, id)`, an id alone, which means a patient of any source, or a
                frozenset of such; `("group", group_id)` is a group of the split.

        Returns:
            For each query its matches, nearest first; of exactly equal ones the first row.
        """
        embeds = np.ascontiguousarray(embeds, dtype=np.float32)
        keys = [frozenset(own) for own in pixel_keys] if pixel_keys is not None else [frozenset()] * len(embeds)
        owners = self._known_pixels.patients(keys)
        for own, patient in zip(owners, patients if patients is not None else (), strict=patients is not None):
            own |= patient if isinstance(patient, frozenset) else {patient} - {None}
        found: list[list[Match]] = [[] for _ in embeds]
        waiting, width, probe_more = list(range(len(embeds))), min(k + _SPARE, len(self)), 1
        while waiting:
            cosines, numbers = self.search(embeds[waiting], width, probe_more)
            cosines = cosines.astype(np.float64).round(6)
            rows = take_rows(self.rows, numbers[:, :k])  # mostly that is enough, and reading them takes time
            short = []
            for query, near, line in zip(waiting, cosines.tolist(), numbers.tolist(), strict=True):
                found[query] = []
                for cosine, number in sorted((-c, n) for c, n in zip(near, line, strict=True) if n >= 0):
                    if number not in rows:
                        rows |= take_rows(self.rows, np.array(line))
                    if _is_allowed(rows[number], keys[query], owners[query]):
                        found[query].append(Match(number, -cosine, rows[number]))
                    if len(found[query]) == k:
                        break
                if len(found[query]) < k:
                    short.append(query)
            if width == len(self) and (self.info["index_type"] == "flat" or probe_more >= self.info["num_cells"]):
                break
            waiting, width = short, min(4 * width, len(self))
            probe_more = probe_more * 4 if width < len(self) else len(self)
        return found

    def image_paths(self, ids: Collection[str]) -> dict[str, Path]:
        """The image files of pairs, by the pairs' ids, where the data folder still has them."""
        folder, found = Path(self.info.get("data_dir", "")), {}
        asked, first = pa.array(sorted(ids), pa.string()), 0
        # Chunk by chunk: put together, the texts of a million reports are more than an offset can tell.
        for pairs in self.rows.data.column("pairs").chunks:
            names = pc.struct_field(pairs.flatten(), "id")
            wanted = pc.is_in(names, value_set=asked)
            places = pc.list_parent_indices(pairs).filter(wanted).to_pylist()
            for name, place in zip(names.filter(wanted).to_pylist(), places, strict=True):
                path = folder / self.rows[first + place]["image"]
                if path.is_file():
                    found[name] = path
            first += len(pairs)
        return found

    def save(self, folder: str | Path) -> None:
        """Writes the index; `index.json` comes last, so that half an index is none."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        with _quiet():
            self._searched.save_faiss_index(_NAME, unfinished / _FAISS_FILE)
            self.rows.save_to_disk(unfinished / _ROWS)
        tensors = {f"{i}.{j}": e.contiguous() for i, t in enumerate(self.labels) for j, e in enumerate(t.class_embeds)}
        safetensors.torch.save_file(tensors, unfinished / _LABELS_FILE)
        shutil.rmtree(folder / _ROWS, ignore_errors=True)
        for name in (_FAISS_FILE, _ROWS, _LABELS_FILE):
            (unfinished / name).replace(folder / name)
        self.info |= {
            "labels": [task.to_dict() for task in self.labels],
            "bytes": _sizes(folder),
        }
        text = json.dumps(self.info, ensure_ascii=False, indent=2)
        (unfinished / INDEX_FILE).write_text(text + "\n", encoding="utf-8")
        (unfinished / INDEX_FILE).replace(folder / INDEX_FILE)
        unfinished.rmdir()

    @classmethod
    def load(cls, folder: str | Path, encoder_hash: str | None = None, data_hash: str | None = None) -> "ImageIndex":
        """Opens an index; texts stay on the disk.

        Args:
            folder: What `save` wrote.
            encoder_hash: Of the encoder that queries are embedded with.
            data_hash: Of the data that the index is taken to be of.

        Raises:
            InputError: There is no whole index, or it is of another encoder or of other data.
        """
        folder = Path(folder)
        info = read_info(folder)
        for name, given, what in (
            ("encoder", encoder_hash, "another encoder than the one given"),
            ("data", data_hash, "other data than those given"),
        ):
            if given is not None and given != info[f"{name}_hash"]:
                made_of = info["encoder_dir"] if name == "encoder" else info["data_dir"]
                raise InputError(f"{folder}: is an index of {what} ({made_of} as it was then); {_REBUILD}")
        rows = datasets.load_from_disk(str(folder / _ROWS))
        searched = rows.with_format(None)
        with _quiet():
            searched.load_faiss_index(_NAME, folder / _FAISS_FILE)
        tensors = safetensors.torch.load_file(folder / _LABELS_FILE)
        labels = []
        for i, task in enumerate(info["labels"]):
            embeds: list[Tensor] = [tensors[f"{i}.{j}"] for j in range(len(task["classes"]))]
            labels.append(LabelTask.from_dict(task, embeds))
        return cls(rows, searched, info, labels)

    @cached_property
    def _known_pixels(self) -> KnownPixels:
        return KnownPixels(self.rows)


def read_info(folder: str | Path) -> dict[str, Any]:
    """What `index.json` says, where the index is whole.

    Raises:
        InputError: There is none, it is of another version of this library, or a file beside it is not the one that
            it was written with.
    """
    folder = Path(folder)
    path = folder / INDEX_FILE
    if not path.is_file():
        raise InputError(f"{folder}: holds no whole index ({INDEX_FILE} is missing); recipes/index.py makes it")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}; {_REBUILD}") from error
    if not isinstance(info, dict) or info.get("version") != _VERSION:
        raise InputError(f"{path}: is of another version; make it anew with recipes/index.py and --overwrite true")
    sizes = _sizes(folder)
    for name, size in info["bytes"].items():
        if sizes.get(name) != size:
            raise InputError(f"{folder / name}: is not the file that {INDEX_FILE} was written with; {_REBUILD}")
    return info


def _is_allowed(row: dict[str, Any], keys: frozenset[str], owners: set[Hashable]) -> bool:
    """Whether an image shares neither a pixel hash nor a patient or group with a query."""
    if not keys.isdisjoint(row["pixels"]):
        return False
    return not any((owner["source"], owner["id"]) in owners or owner["id"] in owners for owner in row["patients"])


def _sizes(folder: Path) -> dict[str, int]:
    files = [folder / _FAISS_FILE, folder / _LABELS_FILE, folder / EVIDENCE_FILE, *(folder / _ROWS).glob("*")]
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files) if path.is_file()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of `datasets`, which would show files that nobody asked about."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

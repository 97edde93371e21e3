"""Builds the index of a data folder, and the evidence of every chat that is trained on."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from medfinetune.data.evidence import Evidence
from medfinetune.data.load import load_pairs
from medfinetune.encoder.metrics import embed_texts
from medfinetune.encoder.model import load_encoder
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import image_paths
from medfinetune.evaluation.embedded import EmbeddedSplit, embed_split
from medfinetune.evaluation.tasks import Task, known_truths, read_tasks
from medfinetune.inference.config import IndexConfig
from medfinetune.inference.evidence import EvidenceFinder
from medfinetune.inference.fingerprint import data_hash, encoder_hash
from medfinetune.inference.index import EVIDENCE_FILE, INDEX_FILE, ImageIndex, read_info
from medfinetune.inference.labels import LabelTask, calibrated_task
from medfinetune.inference.rows import FEATURES

_LOCK_FILE = ".index.lock"
_QUERIES_AT_ONCE, _ROWS_AT_ONCE, _MAX_MEASURED = 256, 10_000, 2_000
_UNLIKE_PERCENTILE, _DROP_PERCENTILE = 1, 95
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)


def build_index(config: IndexConfig) -> Path:
    """Builds an index, or leaves one that is of the same encoder, data and settings.

    Several processes may call it at once: one builds, the others wait for it.

    Returns:
        The index's folder.

    Raises:
        InputError: An index of another encoder, other data or other settings stands there and `overwrite` is not set;
            or encoder, data or tasks are not as they must be.
    """
    folder, tasks = Path(config.output_dir), read_tasks(config.zero_shot_file) if config.zero_shot_file else []
    made_of = describe(config, tasks)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder):
        if not is_needed(folder, made_of, config.overwrite):
            return folder
        (folder / INDEX_FILE).unlink(missing_ok=True)
        splits = load_pairs(config.data_dir)
        if not any(task in config.tasks for task in splits.get("train", {"task": []})["task"]):
            raise InputError(
                f"{config.data_dir}: the training split has no pair of the tasks {', '.join(config.tasks)}"
            )
        model, processor = load_encoder(config.encoder_dir, config.encoder_revision)
        model = model.to(torch.accelerator.current_accelerator() or "cpu").eval()
        embedded = {
            name: _embed(model, processor, splits[name], config, name)
            for name in ("train", "validation")
            if name in splits
        }
        labels = [
            calibrated_task(
                task,
                lambda texts: embed_texts(model, processor, texts, config.batch_size),
                sorted(set(embedded["train"].columns["language"])),
                model.logit_scale.exp().item(),
                model.logit_bias.item(),
                embedded.get("validation"),
            )
            for task in tasks
        ]
        index = _index(embedded["train"], config, labels)
        index.info["known"] = sorted({name for names in index.rows["known"] for name in names})
        index.info |= made_of | _measured(index, embedded, config)
        _write_evidence(folder / EVIDENCE_FILE, EvidenceFinder(index), embedded)
        index.save(folder)
    return folder


def read_evidence(index_dir: str | Path, data_dir: str | Path | None = None) -> dict[str, Evidence]:
    """The evidence of the chats of the training and validation splits, by their ids.

    Args:
        index_dir: What `build_index` wrote.
        data_dir: The data that the chats are of; not looked at where left out.

    Raises:
        InputError: There is no whole index, or it is of other data.
    """
    info = read_info(index_dir)
    if data_dir is not None and data_hash(data_dir) != info["data_hash"]:
        raise InputError(
            f"{index_dir}: is an index of other data ({info['data_dir']} as it was then) than {data_dir}; "
            "make it anew with recipes/index.py and --overwrite true"
        )
    found = {}
    with (Path(index_dir) / EVIDENCE_FILE).open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found[row["id"]] = Evidence.from_dict(row)
    return found


def describe(config: IndexConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """What an index is made of; another one of the same is equal.

    Raises:
        InputError: Encoder or data are missing.
    """
    asked = json.dumps([asdict(task) for task in tasks], sort_keys=True)
    return {
        "encoder_dir": config.encoder_dir,
        "encoder_hash": encoder_hash(config.encoder_dir, config.encoder_revision),
        "data_dir": str(Path(config.data_dir).resolve()),
        "data_hash": data_hash(config.data_dir),
        "settings": {
            "tasks": sorted(config.tasks),
            "zero_shot": hashlib.sha256(asked.encode()).hexdigest(),
            "num_neighbours": config.num_neighbours,
            "max_similarity_drop": config.max_similarity_drop,
            "index_type": config.index_type,
        },
    }


def is_needed(folder: Path, made_of: dict[str, Any], overwrite: bool) -> bool:
    """Whether an index is to be built: there is none, or another that may be replaced.

    Raises:
        InputError: There is another that may not be replaced.
    """
    if not (folder / INDEX_FILE).is_file():
        return True
    try:
        info = read_info(folder)
        for name, what in (
            ("encoder_hash", "another encoder"),
            ("data_hash", "other data"),
            ("settings", "other keys"),
        ):
            if info[name] != made_of[name]:
                raise InputError(
                    f"{folder}: holds an index of {what}; name another folder, or replace this one with "
                    "recipes/index.py and --overwrite true"
                )
    except InputError:
        if overwrite:
            return True
        raise
    return False


def _embed(model: Any, processor: Any, pairs: datasets.Dataset, config: IndexConfig, split: str) -> EmbeddedSplit:
    try:
        return embed_split(model, processor, pairs, config.batch_size)
    except _UNREADABLE as error:
        raise InputError(
            f"{config.data_dir}: an image of the split {split} does not open ({' '.join(str(error).split())[:200]}); "
            "prepare the data anew"
        ) from error


def _index(train: EmbeddedSplit, config: IndexConfig, labels: Sequence[LabelTask]) -> ImageIndex:
    """Of the distinct images that have a pair of the tasks; patients and pixels are those of all their pairs."""
    columns, paths = train.columns, image_paths(train.pairs, config.data_dir)
    rows_of: list[list[int]] = [[] for _ in train.rows]
    for row, image in enumerate(train.place):
        rows_of[image].append(row)
    images = [i for i, rows in enumerate(rows_of) if any(columns["task"][row] in config.tasks for row in rows)]
    truths = {label.task.name: known_truths(label.task, columns) for label in labels}

    def described(image: int) -> dict[str, Any]:
        rows = rows_of[image]
        told = [row for row in rows if columns["task"][row] in config.tasks]
        owners = sorted(set().union(*(train.owners[row] for row in rows)))
        names = ("id", "text", "language", "source", "label")
        return {
            "pairs": [{name: columns[name][row] for name in names} for row in told],
            "patients": [{"source": source, "id": owner} for source, owner in owners],
            "pixels": list(dict.fromkeys(key for row in rows for key in columns["pixel_sha256"][row])),
            "known": [name for name, known in truths.items() if any(row in known for row in rows)],
            "image": paths[train.rows[image]],
        }

    parts = [
        datasets.Dataset.from_list([described(i) for i in images[start : start + _ROWS_AT_ONCE]], features=FEATURES)
        for start in range(0, len(images), _ROWS_AT_ONCE)
    ]
    return ImageIndex.build(
        train.embeds[images].numpy(), datasets.concatenate_datasets(parts), config.index_type, labels
    )


def _measured(index: ImageIndex, embedded: dict[str, EmbeddedSplit], config: IndexConfig) -> dict[str, Any]:
    """How similar new images are to those of the index: from the validation split, else from the training split.

    The images that ask are those with a pair of the indexed tasks, where there are any; none finds its own patient or
    study.
    """
    name = "validation" if "validation" in embedded else "train"
    split = embedded[name]
    asking = sorted({split.place[row] for row, task in enumerate(split.columns["task"]) if task in config.tasks})
    asking = asking or list(range(len(split.rows)))
    if len(asking) > _MAX_MEASURED:
        asking = sorted(np.random.default_rng(0).permutation(asking)[:_MAX_MEASURED].tolist())
    nearest, drops = [], []
    for start in range(0, len(asking), _QUERIES_AT_ONCE):
        images = asking[start : start + _QUERIES_AT_ONCE]
        keys = [split.columns["pixel_sha256"][split.rows[image]] for image in images]
        owners = [split.owners[split.rows[image]] for image in images]
        for near in index.nearest(split.embeds[images].numpy(), config.num_neighbours, keys, owners):
            nearest += [near[0].similarity] if near else []
            drops += [near[0].similarity - near[-1].similarity] if len(near) == config.num_neighbours else []
    limit, drop = config.max_similarity_drop, None
    if drops:
        drop = round(float(np.percentile(drops, _DROP_PERCENTILE)), 6)
    return {
        "num_neighbours": config.num_neighbours,
        "max_similarity_drop": drop if limit is None else limit,
        "unlike_below": round(float(np.percentile(nearest, _UNLIKE_PERCENTILE)), 6) if nearest else None,
        "measured_on": name,
        "num_measured": len(nearest),
    }


def _write_evidence(path: Path, finder: EvidenceFinder, embedded: dict[str, EmbeddedSplit]) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    total = sum(len(split.keys) for split in embedded.values())
    with unfinished.open("w", encoding="utf-8") as file, tqdm(total=total, desc="evidence", unit="chat") as progress:
        for split in embedded.values():
            columns = split.columns
            for start in range(0, len(split.keys), _QUERIES_AT_ONCE):
                rows = range(start, min(start + _QUERIES_AT_ONCE, len(split.keys)))
                found = finder.find(
                    split.embeds[[split.place[row] for row in rows]],
                    [columns["pixel_sha256"][row] for row in rows],
                    [split.owners[row] for row in rows],
                    [columns["language"][row] for row in rows],
                )
                for row, evidence in zip(rows, found, strict=True):
                    line = {"id": columns["id"][row], **evidence.to_dict()}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                progress.update(len(rows))
    unfinished.replace(path)


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Waits until no other process builds there; the system lets go however a process ends."""
    file = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            # Some network file systems know no locks: better to build there unguarded than not at all.
            if isinstance(error, BlockingIOError):
                raise
        yield
    finally:
        os.close(file)

"""Opens what `prepare` wrote as `datasets`, with images that are decoded when they are asked for."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE
from medfinetune.data.schema import FEATURES, SPLITS
from medfinetune.errors import InputError

_HINT = "recipes/prepare.py makes it (data_dir is its output_dir; recipes/demo.py --only_inputs makes the demo's)"
_ROWS_AT_ONCE = 10_000
_IMAGES = datasets.List(datasets.Image())
_TEXT = datasets.Value("string")
_PAIR_FEATURES = datasets.Features(FEATURES | {"images": _IMAGES})
_CHAT_FEATURES = datasets.Features(
    {
        "id": _TEXT,
        "images": _IMAGES,
        # Not a struct: that would add `text: None` to the image parts.
        "messages": datasets.Json(),
        "split": _TEXT,
        "language": _TEXT,
        "source": _TEXT,
        "task": _TEXT,
    }
)


def load_pairs(data_dir: str | Path, split: str | None = None) -> datasets.Dataset | datasets.DatasetDict:
    """Opens `all_med_pairs.parquet`.

    Args:
        data_dir: The folder that `prepare` wrote.
        split: `train`, `validation` or `test`; all that there are, by name, where left out.

    Returns:
        The columns of `schema.FEATURES`, with `images` as a list of `PIL.Image`, decoded at each access.

    Raises:
        InputError: The folder, the file or a column is missing, or the split does not exist.
    """
    path = _existing(data_dir, PAIRS_FILE)
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no parquet: {error}") from error
    with file:
        _check_columns(path, file.schema_arrow.names, FEATURES)
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=list(FEATURES))
        return _by_split((row for batch in batches for row in batch.to_pylist()), _PAIR_FEATURES, path, split)


def load_chats(data_dir: str | Path, split: str | None = None) -> datasets.Dataset | datasets.DatasetDict:
    """Opens `chat_instructions.jsonl`; arguments and errors are those of `load_pairs`.

    Returns:
        The columns `id, images, messages, split, language, source, task`, with `images` as a list of `PIL.Image`,
        decoded at each access, and `messages` as they stand in the file.
    """
    path = _existing(data_dir, CHATS_FILE)
    return _by_split(_read_chats(path), _CHAT_FEATURES, path, split)


def _read_chats(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is no JSON object")
            _check_columns(f"{path}: line {number}", row, ("id", "images", "messages", "split"))
            yield {name: row.get(name) for name in _CHAT_FEATURES}


def _existing(data_dir: str | Path, name: str) -> Path:
    if not str(data_dir):
        raise InputError(f"data_dir: is missing; {_HINT}")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {_HINT}")
    if not (folder / name).is_file():
        raise InputError(f"{folder / name}: no such file; {_HINT}")
    return folder / name


def _check_columns(where: str | Path, names: Any, wanted: Any) -> None:
    for column in wanted:
        if column not in names:
            raise InputError(f"{where}: column {column} is missing; {_HINT}")


def _by_split(
    rows: Iterable[dict[str, Any]], features: datasets.Features, path: Path, split: str | None
) -> datasets.Dataset | datasets.DatasetDict:
    if split is not None and split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    folder = path.parent.resolve()
    # Rows as Python objects take many times what Arrow takes: only some are held as such.
    loaded: dict[str, list[datasets.Dataset]] = {name: [] for name in SPLITS}
    waiting: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}

    def pack(name: str) -> None:
        loaded[name].append(datasets.Dataset.from_list(waiting[name], features=features))
        waiting[name] = []

    for number, row in enumerate(rows, start=1):
        name = row["split"]
        if name not in loaded:
            raise InputError(f"{path}: row {number}: split {name!r} is none of {', '.join(SPLITS)}")
        # Paths only: no image is opened or embedded here.
        waiting[name].append(row | {"images": [str(folder / image) for image in row["images"]]})
        if len(waiting[name]) == _ROWS_AT_ONCE:
            pack(name)
    for name in SPLITS:
        if waiting[name]:
            pack(name)
    present = {name: datasets.concatenate_datasets(parts) for name, parts in loaded.items() if parts}
    if not present:
        raise InputError(f"{path}: is empty; {_HINT}")
    if split is not None and split not in present:
        raise InputError(
            f"{path}: the split {split} is empty; there are {', '.join(present)}: name one of them with --split, or "
            f"prepare the data anew with {split}_fraction or a column `split`"
        )
    return datasets.DatasetDict(present) if split is None else present[split]

"""Opens what `prepare` wrote as `datasets`, with images that are decoded when they are asked for."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE
from medfinetune.data.schema import FEATURES, SPLITS
from medfinetune.errors import InputError

_HINT = "make it with: python recipes/prepare.py --config recipes/prepare/demo.yaml"
_IMAGES = datasets.List(datasets.Image())
_TEXT = datasets.Value("string")
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
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no parquet: {error}") from error
    _check_columns(path, table.column_names, FEATURES)
    rows = datasets.Dataset(table.select(list(FEATURES)).cast(FEATURES.arrow_schema))
    return _by_split(rows, path, split)


def load_chats(data_dir: str | Path, split: str | None = None) -> datasets.Dataset | datasets.DatasetDict:
    """Opens `chat_instructions.jsonl`; arguments and errors are those of `load_pairs`.

    Returns:
        The columns `id, images, messages, split, language, source, task`, with `images` as a list of `PIL.Image`,
        decoded at each access, and `messages` as they stand in the file.
    """
    path = _existing(data_dir, CHATS_FILE)
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is no JSON: {error}") from error
            _check_columns(f"{path}: line {number}", row, ("id", "images", "messages", "split"))
            rows.append({name: row.get(name) for name in _CHAT_FEATURES})
    if not rows:
        raise InputError(f"{path}: is empty; {_HINT}")
    features = datasets.Features(_CHAT_FEATURES | {"images": datasets.List(_TEXT)})
    return _by_split(datasets.Dataset.from_list(rows, features=features), path, split)


def _existing(data_dir: str | Path, name: str) -> Path:
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


def _by_split(rows: datasets.Dataset, path: Path, split: str | None) -> datasets.Dataset | datasets.DatasetDict:
    if split is not None and split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    rows = _with_images(rows, path.parent)
    indices: dict[str, list[int]] = {name: [] for name in SPLITS}
    for i, name in enumerate(rows["split"]):
        if name not in indices:
            raise InputError(f"{path}: row {i + 1}: split {name!r} is none of {', '.join(SPLITS)}")
        indices[name].append(i)
    present = [name for name in SPLITS if indices[name]]
    if split is None:
        return datasets.DatasetDict({name: rows.select(indices[name]) for name in present})
    if split not in present:
        raise InputError(f"{path}: the split {split} is empty; there are {', '.join(present)}")
    return rows.select(indices[split])


def _with_images(rows: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Makes the paths absolute and lets them be decoded on access; no image is opened or embedded here."""
    folder = folder.resolve()
    column = [[str(folder / path) for path in paths] for paths in rows["images"]]
    order = rows.column_names
    rows = rows.remove_columns("images").add_column("images", column, feature=datasets.List(_TEXT))
    return rows.select_columns(order).cast_column("images", _IMAGES)

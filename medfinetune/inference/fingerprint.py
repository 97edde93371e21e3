"""What an index or a run of reports was made with: hashes of the models' files and of the data."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import cached_file

from medfinetune.data.chat import PAIRS_FILE
from medfinetune.errors import InputError, why_not_loaded

_PART = 2**24  # bytes
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_SHARDS = "model.safetensors.index.json"
_SETTINGS = (
    "config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "special_tokens_map.json",
)
# What else decides a text that is written.
_WRITING = ("generation_config.json", "chat_template.jinja", "chat_template.json")
# They change when a checkpoint is saved by another version or loaded from another folder, and no embedding does.
_VOLATILE = (
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
    "dtype",
    "torch_dtype",
    "architectures",
)


def encoder_hash(model_name_or_path: str, revision: str | None = None) -> str:
    """SHA-256 of everything that decides an embedding: weights, shape, image and text processing.

    Args:
        model_name_or_path: What `load_encoder` takes: a folder, a folder with an adapter (its base model counts too),
            or a name on the Hub, whose files are those that loading fetched.

    Raises:
        InputError: It cannot be read, or has no weights in safetensors.
    """
    return _readable_hash(model_name_or_path, revision, _SETTINGS)


def decoder_hash(model_name_or_path: str, revision: str | None = None) -> str:
    """SHA-256 of everything that decides what a decoder writes: as `encoder_hash`, with its template and settings.

    Raises:
        InputError: As `encoder_hash`.
    """
    return _readable_hash(model_name_or_path, revision, (*_SETTINGS, *_WRITING))


def _readable_hash(model_name_or_path: str, revision: str | None, others: tuple[str, ...]) -> str:
    try:
        return _hash(model_name_or_path, revision, others)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(why_not_loaded(model_name_or_path, error)) from error


def _hash(model_name_or_path: str, revision: str | None, others: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    names = [*_WEIGHTS]
    shards = _file(model_name_or_path, _SHARDS, revision)
    if shards is not None:
        names += sorted(set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values()))
    files = {name: _file(model_name_or_path, name, revision) for name in names}
    if not any(files.values()):
        raise InputError(f"{model_name_or_path}: holds no weights in safetensors; name the folder of a model")
    files |= {name: _file(model_name_or_path, name, revision) for name in others}
    found = {name: path for name, path in files.items() if path is not None}
    size = sum(path.stat().st_size for path in found.values())
    # Tens of GB take minutes; what is short shows nothing.
    with tqdm(total=size, desc=f"reading {model_name_or_path}", unit="B", unit_scale=True, delay=5) as progress:
        for name, path in found.items():
            digest.update(f"{name}\0".encode())
            if path.suffix == ".json" and name != "tokenizer.json":
                settings = _without_volatile(json.loads(path.read_text(encoding="utf-8")))
                digest.update(json.dumps(settings, sort_keys=True).encode())
            else:
                digest.update(file_hash(path, progress.update).encode())
    if files["adapter_config.json"] is not None:
        adapter = json.loads(files["adapter_config.json"].read_text(encoding="utf-8"))
        digest.update(_hash(adapter["base_model_name_or_path"], adapter.get("revision"), others).encode())
    return digest.hexdigest()


def data_hash(data_dir: str | Path) -> str:
    """SHA-256 of the pairs, in which each image stands by the hash of its pixels.

    Raises:
        InputError: The folder or its pairs are missing.
    """
    path = Path(data_dir) / PAIRS_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; recipes/prepare.py makes it (data_dir is its output_dir)")
    return file_hash(path)


def file_hash(path: Path, progress: Callable[[int], object] = lambda num: None) -> str:
    """SHA-256 of a file's bytes; `progress` is called with the number of bytes of each part."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
            progress(len(part))
    return digest.hexdigest()


def _file(name: str, file: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    found = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return Path(found) if found else None


def _without_volatile(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: _without_volatile(value) for key, value in settings.items() if key not in _VOLATILE}
    return [_without_volatile(item) for item in settings] if isinstance(settings, list) else settings

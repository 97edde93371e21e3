"""Walks raw folders, and passes over nothing in silence."""

import os
from collections.abc import Iterator
from pathlib import Path

from medfinetune.errors import InputError


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, which leaves out a folder that it may not read without a word.

    Raises:
        InputError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    return os.walk(folder, onerror=refuse)

"""What an index knows of each image."""

from typing import Any

import datasets
import numpy as np

_TEXT = datasets.Value("string")
_PAIR = {"id": _TEXT, "text": _TEXT, "language": _TEXT, "source": _TEXT, "label": _TEXT}
_PATIENT = {"source": _TEXT, "id": _TEXT}
FEATURES = datasets.Features(
    {
        "pairs": datasets.List(_PAIR),
        "patients": datasets.List(_PATIENT),
        "pixels": datasets.List(_TEXT),
        "known": datasets.List(_TEXT),
        "image": _TEXT,
    }
)
"""A row for each distinct image: the pairs whose texts it has, all patients, groups of the split (source `group`) and
pixel hashes that are tied to it (of a pair with several images, those of the others too), the tasks whose truth is
known of it, and its file relative to the data folder."""


def take_rows(rows: datasets.Dataset, numbers: np.ndarray) -> dict[int, dict[str, Any]]:
    """Rows by their numbers, each read once; negative numbers are none."""
    wanted = np.unique(numbers[numbers >= 0]).tolist()
    columns = rows[wanted]
    return {number: {name: columns[name][i] for name in columns} for i, number in enumerate(wanted)}

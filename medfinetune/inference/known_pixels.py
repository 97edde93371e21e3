"""Whose an image is that an index knows already."""

from collections.abc import Hashable, Sequence

import datasets
import numpy as np
import pyarrow.compute as pc

from medfinetune.inference.rows import take_rows


class KnownPixels:
    """Finds rows by the hashes of their pixels: a dictionary of a million of them would take too much memory."""

    def __init__(self, rows: datasets.Dataset):
        """
        Args:
            rows: With the columns `pixels` and `patients` of an index.
        """
        self._rows = rows
        pixels = rows.data.column("pixels").combine_chunks()
        hashes = np.fromiter((hash(key.as_py()) for key in pixels.flatten()), dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], pc.list_parent_indices(pixels).to_numpy()[order]

    def patients(self, keys: Sequence[frozenset[str]]) -> list[set[Hashable]]:
        """For the pixel hashes of each query, `(source, id)` of all whose image has one of them."""
        own = [sorted(of_query) for of_query in keys]
        asked = np.array([hash(key) for of_query in own for key in of_query], dtype=np.int64)
        first, last = (np.searchsorted(self._hashes, asked, side) for side in ("left", "right"))
        hits = [self._places[one:end] for one, end in zip(first, last, strict=True)]
        rows = take_rows(self._rows, np.concatenate(hits)) if any(map(len, hits)) else {}
        found, at = [], iter(hits)
        for of_query in own:
            owners: set[Hashable] = set()
            for key in of_query:
                for row in (rows[int(place)] for place in next(at)):
                    if key in row["pixels"]:  # two keys may have one short hash
                        owners |= {(owner["source"], owner["id"]) for owner in row["patients"]}
            found.append(owners)
        return found

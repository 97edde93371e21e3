"""An inexact index for more images than every query can be compared with."""

import math
from typing import Any

import faiss
import numpy as np

_ENOUGH_RECALL, _NUM_PROBED = 0.99, 256
_POINTS_A_CELL = 39
"""Fewer training vectors a cell, and FAISS warns that its cells are poor."""


def cells_of(embeds: np.ndarray, random: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """A trained index of cells, still empty, and how many of them are looked into so that the recall is enough."""
    num_cells = max(1, min(round(4 * math.sqrt(len(embeds))), len(embeds) // _POINTS_A_CELL))
    index = faiss.index_factory(embeds.shape[1], f"IVF{num_cells},Flat", faiss.METRIC_INNER_PRODUCT)
    # Of all of them: the first are of one source.
    learned = random.permutation(len(embeds))[: num_cells * 4 * _POINTS_A_CELL]
    index.train(embeds[learned])
    trial = faiss.clone_index(index)
    trial.add(embeds)
    asked = embeds[random.permutation(len(embeds))[:_NUM_PROBED]]
    k = min(10, len(embeds))
    exact = np.argsort(-(asked @ embeds.T), axis=1)[:, :k]
    nprobe, recall = 1, 0.0
    while True:
        _, found = trial.search(asked, k, params=faiss.SearchParametersIVF(nprobe=nprobe))
        recall = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(exact, found, strict=True)]))
        if recall >= _ENOUGH_RECALL or nprobe == num_cells:
            break
        nprobe = min(2 * nprobe, num_cells)
    return index, {"num_cells": num_cells, "nprobe": nprobe, "recall_at_10": recall}

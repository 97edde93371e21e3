"""Seconds by stage: how long a report waits for its embedding, its evidence, its first token, and each further one."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from medfinetune.errors import InputError

STAGES = ("embedding", "lookup", "first_token", "per_token")
"""The stages of a report, in their order; a clock takes any other name too."""


class StageClock:
    """Gathers the seconds of stages that run again and again.

        clock = StageClock(device=model.device)
        with clock.stage("lookup", num_items=len(images)):
            evidence = finder.find(...)
        clock.figures()["lookup"]["median_s"]

    A GPU works on after its call has returned: on a CUDA device the clock waits for it before and after each stage, so
    that a stage is not charged for the one before.
    """

    def __init__(self, device: torch.device | str | None = None, clock: Callable[[], float] = time.perf_counter):
        """
        Args:
            device: Where the timed work runs; waited for where it is a CUDA device.
            clock: Seconds of any origin.
        """
        self._device = None if device is None else torch.device(device)
        self._clock = clock
        self._runs: dict[str, list[tuple[float, int]]] = {}

    @contextmanager
    def stage(self, name: str, num_items: int = 1) -> Iterator[None]:
        """Times what stands under `with`; a stage that raises is not counted.

        Args:
            name: Of the stage; of `STAGES` where it is one of a report's.
            num_items: Images, or for `per_token` tokens, that are handled at once. A stage of none is not counted.
        """
        self._wait()
        start = self._clock()
        yield
        self._wait()
        self.add(name, self._clock() - start, num_items)

    def add(self, name: str, seconds: float, num_items: int = 1) -> None:
        """Counts a stage that was timed elsewhere, e.g. tokens inside of `generate`."""
        if num_items > 0:
            self._runs.setdefault(name, []).append((seconds, num_items))

    def merge(self, other: "StageClock") -> None:
        """Takes over what another clock gathered, e.g. that of another shard."""
        for name, runs in other._runs.items():
            self._runs.setdefault(name, []).extend(runs)

    def figures(self) -> dict[str, dict[str, Any]]:
        """`latency_figures` of what was gathered."""
        return latency_figures(
            {name: [s for s, _ in runs] for name, runs in self._runs.items()},
            {name: [n for _, n in runs] for name, runs in self._runs.items()},
        )

    def _wait(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def latency_figures(
    seconds: Mapping[str, Iterable[float]], num_items: Mapping[str, Iterable[int]] | None = None
) -> dict[str, dict[str, Any]]:
    """Seconds an item, stage by stage.

    Each run gives one value, its seconds over its items: how long an item takes at the batch size that was used, not
    how long it waits, which is the batch's whole time.

    Args:
        seconds: Stage -> the seconds of each of its runs, at least 0.
        num_items: Stage -> the items of each run, above 0; 1 each where left out.

    Returns:
        Stage -> `median_s`, `p95_s` (95th percentile, between runs by straight lines) and `mean_s` (all seconds over
        all items), in seconds an item; `total_s`; `num_runs`; `num_items`. The stages of a report come first. A stage
        without a run is left out.

    Raises:
        InputError: A stage has not as many counts as runs, or a count or a time is out of range.
    """
    order = sorted(seconds, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    result = {}
    for name in order:
        times = np.array(list(seconds[name]), dtype=np.float64)
        given = num_items.get(name) if num_items is not None else None
        counts = np.ones(len(times), dtype=np.int64) if given is None else np.array(list(given), dtype=np.int64)
        if len(times) != len(counts):
            raise InputError(f"latency of {name}: {len(times)} times for {len(counts)} counts of items")
        if not len(times):
            continue
        if not np.isfinite(times).all() or times.min() < 0 or counts.min() < 1:
            raise InputError(f"latency of {name}: times must be at least 0 seconds, and items at least 1")
        each = times / counts
        result[name] = {
            "median_s": float(np.median(each)),
            "p95_s": float(np.percentile(each, 95)),
            "mean_s": float(times.sum() / counts.sum()),
            "total_s": float(times.sum()),
            "num_runs": len(times),
            "num_items": int(counts.sum()),
        }
    return result

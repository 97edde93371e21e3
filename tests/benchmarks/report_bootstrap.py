"""Measures the intervals of a report's figures: python tests/benchmarks/report_bootstrap.py

1,000 resamples of 2,000 cases of 1,500 patients, for micro F1 and two means, against a plain Python loop that draws
patients and adds up their cases. Prints a table, and as its last line JSON. It takes ten seconds, on one thread.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402

from medfinetune.evaluation.bootstrap import Bootstrap  # noqa: E402
from medfinetune.evaluation.case_statistics import mean_of_cases, ratio_of_sums  # noqa: E402

NUM_RESAMPLES, NUM_CASES, NUM_PATIENTS = 1000, 2000, 1500
KEYS = ("bootstrap_vs_loop", "bootstrap_seconds", "bootstrap_loop_seconds")
Case = tuple[int, int, int, float, float]
"""Findings that are right, stated and true, and two scores."""


def draw_cases(num_cases: int, num_patients: int, seed: int = 0) -> tuple[list[Case], list[int]]:
    """Cases with up to six findings, and whose they are."""
    rng = random.Random(seed)
    cases = []
    for _ in range(num_cases):
        stated, true = rng.randint(0, 6), rng.randint(0, 6)
        cases.append((rng.randint(0, min(stated, true)), stated, true, rng.random(), rng.random()))
    return cases, [rng.randrange(num_patients) for _ in range(num_cases)]


def ours(cases: Sequence[Case], patients: Sequence[int], num_resamples: int, seed: int = 0) -> list[list[float]]:
    """The intervals of micro F1 and of the two means, from lists as they come."""
    right, stated, true, first, second = np.array(cases).T
    figures = [ratio_of_sums(2 * right, stated + true), mean_of_cases(first), mean_of_cases(second)]
    bootstrap = Bootstrap(patients, num_resamples, seed)
    return [bootstrap.interval(values) for values in bootstrap.figures(figures)]


def plain_loop(cases: Sequence[Case], patients: Sequence[int], num_resamples: int, seed: int = 0) -> list[list[float]]:
    """The same, as one writes it down: draw patients, go through their cases, add up."""
    rng = random.Random(seed)
    by_patient: dict[int, list[Case]] = {}
    for case, patient in zip(cases, patients, strict=True):
        by_patient.setdefault(patient, []).append(case)
    clusters = list(by_patient.values())
    found: list[list[float]] = [[], [], []]
    for _ in range(num_resamples):
        total_right = total = count = 0
        sum_first = sum_second = 0.0
        for cluster in rng.choices(clusters, k=len(clusters)):
            for right, stated, true, first, second in cluster:
                total_right += right
                total += stated + true
                sum_first += first
                sum_second += second
                count += 1
        for values, figure in zip(found, (2 * total_right / total, sum_first / count, sum_second / count), strict=True):
            values.append(figure)
    return [list(np.percentile(values, (2.5, 97.5))) for values in found]


def measure_bootstrap(repeats: int = 5) -> dict[str, float]:
    """`bootstrap_vs_loop`: how many times as fast as the loop, by the median of some repeats, taken in turn."""
    cases, patients = draw_cases(NUM_CASES, NUM_PATIENTS)
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    intervals = {}
    for _ in range(repeats):
        for name, work in (("ours", ours), ("loop", plain_loop)):
            start = time.perf_counter()
            intervals[name] = work(cases, patients, NUM_RESAMPLES)
            seconds[name].append(time.perf_counter() - start)
    # Both drew for themselves: the limits agree as far as a thousand draws can tell.
    np.testing.assert_allclose(intervals["ours"], intervals["loop"], rtol=0, atol=0.005)
    mine, loop = (float(np.median(seconds[name])) for name in ("ours", "loop"))
    return dict(zip(KEYS, (round(loop / mine, 1), round(mine, 4), round(loop, 3)), strict=True))


def main() -> None:
    figures = measure_bootstrap()
    lines = {
        f"seconds for {NUM_RESAMPLES:,} resamples of {NUM_CASES:,} cases": figures["bootstrap_seconds"],
        "seconds of a plain Python loop": figures["bootstrap_loop_seconds"],
        "times as fast (at least 20 is wanted)": figures["bootstrap_vs_loop"],
        "cores": len(os.sched_getaffinity(0)),
        "numpy": np.__version__,
    }
    for key, value in lines.items():
        print(f"{key:<70} {value!s:>20}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

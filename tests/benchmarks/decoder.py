"""Measures the decoder: python tests/benchmarks/decoder.py

Prints a table, and as its last line JSON. `--only flops` counts alone, `--only time` times alone; what was not measured
is null. `--gpu` measures training on the CUDA device, and nothing else. It takes about 5 minutes on two cores.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
import warnings
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

from transformers.utils import logging  # noqa: E402

from tests.benchmarks.decoder_flops import KEYS as FLOP_KEYS  # noqa: E402
from tests.benchmarks.decoder_flops import measure_flops  # noqa: E402
from tests.benchmarks.decoder_gpu import measure_gpu  # noqa: E402
from tests.benchmarks.decoder_time import measure_time  # noqa: E402

PARTS = ("flops", "time")
KEYS = (*FLOP_KEYS, "step_time_ratio_1tile", "frozen_saved_bytes")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)} (default: all)")
    parser.add_argument("--gpu", action="store_true", help="measure training on the CUDA device, and nothing else")
    arguments = parser.parse_args()
    arguments.only = ["gpu"] if arguments.gpu else arguments.only.split(",")
    if unknown := set(arguments.only) - {*PARTS, "gpu"}:
        parser.error(f"--only: {', '.join(sorted(unknown))}: must be of {', '.join(PARTS)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    measures = {"flops": measure_flops, "time": measure_time, "gpu": measure_gpu}
    figures, lines = dict.fromkeys(KEYS), {}
    for part in arguments.only:
        started = time.perf_counter()
        print(f"measuring: {part}", flush=True)
        of_part, of_table = measures[part]()
        figures |= of_part
        lines |= of_table | {f"seconds of the part: {part}": f"{time.perf_counter() - started:.0f}"}
    lines["cores"] = f"{len(os.sched_getaffinity(0))}, {platform.machine()}"
    names = [name for name in ("torch", "transformers", "peft", "trl") if importlib.util.find_spec(name)]
    lines["versions"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    for key, value in lines.items():
        print(f"{key:<84} {value!s:>26}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

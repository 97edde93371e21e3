"""Measures the encoder: python tests/benchmarks/encoder.py

Prints a table, and as its last line JSON. `--only loss,step` measures some parts; what was not measured is null. A part
that fails is named and its keys are null; the others go on, and the exit status is 1.
It takes about 40 minutes on two cores. Run it on a machine that does nothing else, with about 16 GB of free memory.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

from transformers.utils import logging  # noqa: E402

from tests.benchmarks.encoder_demo import measure_demo  # noqa: E402
from tests.benchmarks.encoder_gpu import measure_gpu  # noqa: E402
from tests.benchmarks.encoder_input import measure_input  # noqa: E402
from tests.benchmarks.encoder_knee import measure_knee  # noqa: E402
from tests.benchmarks.encoder_loss import KEYS as LOSS_KEYS  # noqa: E402
from tests.benchmarks.encoder_loss import fetch_open_clip, measure_loss  # noqa: E402
from tests.benchmarks.encoder_step import measure_exact, measure_steps  # noqa: E402

PARTS = ("loss", "step", "exact", "input", "demo", "knee")
KEYS = (*LOSS_KEYS, "exact_memory_vs_full", "exact_time_vs_accumulation", "step_time_vs_plain_trainer")
KEYS += ("input_rate_vs_pillow", "input_rate_augmented_vs_pillow", "demo_recall")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default: 3)")
    parser.add_argument("--gpu", action="store_true", help="measure training on the CUDA device, and nothing else")
    parser.add_argument("--open_clip_loss", type=Path, help="open_clip's loss.py, where there is no network")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: must be of {', '.join(PARTS)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def loss_file() -> Path:
            return arguments.open_clip_loss or fetch_open_clip(folder / "open_clip")

        measures = {
            "loss": lambda: measure_loss(loss_file()),
            "step": measure_steps,
            "exact": measure_exact,
            "input": lambda: measure_input(folder),
            "demo": lambda: measure_demo(folder, arguments.seeds),
            "knee": lambda: measure_knee(folder, arguments.seeds),
            "gpu": lambda: measure_gpu(loss_file()),
        }
        figures, lines, failed = dict.fromkeys(KEYS), {}, []
        for part in ["gpu"] if arguments.gpu else [part for part in PARTS if part in arguments.only]:
            started = time.perf_counter()
            print(f"measuring: {part}", flush=True)
            try:
                of_part, of_table = measures[part]()
            except Exception as error:
                # Parts take minutes each: what the others measured is not to be lost.
                traceback.print_exc()
                failed.append(part)
                of_part, of_table = {}, {f"failed: {part}": " ".join(str(error).split())[:60] or type(error).__name__}
            figures |= of_part
            lines |= of_table | {f"seconds of the part: {part}": f"{time.perf_counter() - started:.0f}"}
    lines["cores"] = len(os.sched_getaffinity(0))
    lines["versions"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    for key, value in lines.items():
        print(f"{key:<70} {value!s:>20}")
    print(json.dumps(figures))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()

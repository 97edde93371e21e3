"""The whole job on generated images: raw folders, pairs, both models, evaluation, a page of results.

make demo
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from medfinetune.demo import DEMO_DIR, make_demo_inputs
from medfinetune.evaluation.page import read_predictions, write_page, write_results
from medfinetune.evaluation.summary import describe_results
from medfinetune.parser import run

RECIPES = Path(__file__).parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCH += ["--num_cpu_threads_per_process", str(os.cpu_count())]  # accelerate's default is one
STEPS = {
    "encoder": [*LAUNCH, str(RECIPES / "encoder.py"), "--config", str(RECIPES / "encoder" / "demo.yaml")],
    "decoder": [*LAUNCH, str(RECIPES / "decoder.py"), "--config", str(RECIPES / "decoder" / "demo.yaml")],
    "index": [sys.executable, str(RECIPES / "index.py"), "--config", str(RECIPES / "index" / "demo.yaml")],
    "evaluate": [sys.executable, str(RECIPES / "evaluate.py"), "--config", str(RECIPES / "evaluate" / "demo.yaml")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] + f" It starts {DEMO_DIR} anew.")
    parser.add_argument(
        "--only_inputs", action="store_true", help="make the images, the pairs and the tiny untrained models, and stop"
    )
    only_inputs = parser.parse_args().only_inputs
    start = time.perf_counter()
    seconds = {}
    shutil.rmtree(DEMO_DIR, ignore_errors=True)
    print(f"== inputs: generated raw folders, pairs and tiny random models, in {DEMO_DIR}", flush=True)
    make_demo_inputs(DEMO_DIR)
    if only_inputs:
        print(f"made {DEMO_DIR}/raw, {DEMO_DIR}/data, {DEMO_DIR}/tiny/siglip and {DEMO_DIR}/tiny/mllama")
        return
    seconds["inputs"] = time.perf_counter() - start
    for name, command in STEPS.items():
        print(f"\n== {name}: {' '.join(command[-3:])}", flush=True)
        begin = time.perf_counter()
        if subprocess.run(command).returncode:
            sys.exit(f"error: the step {name} failed; its message stands above")
        seconds[name] = time.perf_counter() - begin
    results = json.loads((DEMO_DIR / "results.json").read_text(encoding="utf-8"))
    seconds["total"] = time.perf_counter() - start
    results["seconds"] |= seconds
    write_results(results, DEMO_DIR)
    page = write_page(
        results,
        DEMO_DIR,
        read_predictions(DEMO_DIR),
        data_dir=DEMO_DIR / "data",
        encoder_dir=DEMO_DIR / "encoder",
        decoder_dir=DEMO_DIR / "decoder",
    )
    print(f"""
{describe_results(results)}
Tiny models of random weights on generated images: the figures show that the job works, nothing about medicine.

Done in {seconds["total"]:.0f} s. Open {page} in a browser; the figures are in {DEMO_DIR / "results.json"}.
With your own data: copy recipes/prepare/original_mix.yaml, name your folders in it, then
  .venv/bin/python recipes/prepare.py --config my_data.yaml
  .venv/bin/accelerate launch --quiet recipes/encoder.py \\
    --config recipes/encoder/siglip_base_448_recommended.yaml --data_dir <output_dir>
  .venv/bin/accelerate launch --quiet recipes/decoder.py \\
    --config recipes/decoder/llama32_11b_lora.yaml --data_dir <output_dir>
(both take --dry_run: everything but the weights; docs/ has the rest)""")


if __name__ == "__main__":
    run(main)

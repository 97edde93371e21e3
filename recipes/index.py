"""Indexes the training images by an encoder: python recipes/index.py --config recipes/index/demo.yaml

Writes to `output_dir` what `recipes/report.py` looks images up in, and the evidence of every training and validation
chat. An index of the same encoder, data and settings is left as it is.
"""

import sys
from pathlib import Path

from medfinetune.errors import InputError
from medfinetune.evaluation.tasks import read_tasks
from medfinetune.inference.build import build_index, describe, is_needed
from medfinetune.inference.config import IndexConfig
from medfinetune.inference.index import INDEX_FILE, read_info
from medfinetune.parser import parse, run, save_config


def main() -> None:
    if len(sys.argv) == 1:
        raise InputError(
            "an index needs a config that names the encoder and the data: "
            "python recipes/index.py --config recipes/index/demo.yaml (--help lists the keys)"
        )
    config = parse(IndexConfig, __doc__.splitlines()[0])
    if config.dry_run:
        made_of = describe(config, read_tasks(config.zero_shot_file) if config.zero_shot_file else [])
        needed = is_needed(Path(config.output_dir), made_of, config.overwrite)
        print(f"{config.output_dir}: {'would be built' if needed else 'is up to date'}")
        return
    file = Path(config.output_dir, INDEX_FILE)
    before = file.stat().st_mtime_ns if file.is_file() else None
    folder = build_index(config)
    built = file.stat().st_mtime_ns != before
    save_config(config, folder / "config.yaml")
    info = read_info(folder)
    kind = "exact" if info["index_type"] == "flat" else f"{info['num_cells']} cells, recall {info['recall_at_10']:.3f}"
    print(f"{folder}: {'built' if built else 'unchanged'}, {info['num_images']:,} images ({kind})")
    for label in info["labels"]:
        fitted = f"calibrated on {label['num_truths']} images" if label["num_truths"] else "as the encoder was trained"
        print(f"  label {label['name']}: {fitted}")
    if info["unlike_below"] is not None:
        print(
            f"  similarity to the nearest image below {info['unlike_below']:.3f} is unlike all training images "
            f"(1st percentile of {info['num_measured']} images of the split {info['measured_on']})"
        )


if __name__ == "__main__":
    run(main)

"""What a run will take, before it starts: python recipes/preflight.py --config recipes/decoder/llama32_11b_lora.yaml

Counts parameters, memory, disk and time from the config alone; loads no weights. Keys of the run's own config may
follow, as for recipes/encoder.py and recipes/decoder.py. The exit status is 1 where the run does not fit.
"""

import sys

from transformers.utils import logging

from medfinetune.decoder import preflight as decoder
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.encoder import preflight as encoder
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.parser import run
from medfinetune.preflight.config import read_arguments
from medfinetune.preflight.table import describe, describe_measured


def main() -> None:
    logging.set_verbosity_error()
    asked = read_arguments({"encoder": SigLIPConfig, "decoder": MllamaSFTConfig})
    options, family = asked.options, encoder if asked.kind == "encoder" else decoder
    plan = family.preflight(
        asked.args,
        asked.machine,
        asked.zero,
        num_images=options.num_images,
        num_tiles=options.num_tiles,
        num_rows=options.num_rows,
    )
    print(describe(plan))
    if options.measure:
        print(describe_measured(family.measure_run(asked.args, asked.machine, asked.zero)))
    sys.exit(0 if plan.fits else 1)


if __name__ == "__main__":
    run(main)

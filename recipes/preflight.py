"""What a run will take, before it starts: python recipes/preflight.py --config recipes/decoder/llama32_11b_lora.yaml

Counts parameters, memory, disk and time from the config alone; loads no weights. Keys of the run's own config may
follow, as for recipes/encoder.py and recipes/decoder.py. The exit status is 1 where the run does not fit.
"""

import sys
import warnings

from transformers.utils import logging

from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.measure import measure_run as measure_decoder
from medfinetune.decoder.preflight import preflight as preflight_decoder
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.measure import measure_run as measure_encoder
from medfinetune.encoder.preflight import preflight as preflight_encoder
from medfinetune.inference.training_evidence import training_evidence
from medfinetune.parser import run
from medfinetune.preflight.config import read_arguments
from medfinetune.preflight.table import describe, describe_measured


def main() -> None:
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    asked = read_arguments({"encoder": SigLIPConfig, "decoder": MllamaSFTConfig})
    print("counting a step on tensors without memory; the 11B model takes up to a minute", file=sys.stderr)
    args, machine, zero, options = asked.args, asked.machine, asked.zero, asked.options
    if asked.kind == "encoder":
        plan = preflight_encoder(args, machine, zero, options.num_rows)
    else:
        plan = preflight_decoder(args, machine, zero, options.num_images, options.num_tiles, options.num_rows)
    print(describe(plan))
    if options.measure:
        if asked.kind == "encoder":
            measured = measure_encoder(args, machine, zero)
        else:
            measured = measure_decoder(args, machine, zero, training_evidence(args))
        print(describe_measured(measured))
    sys.exit(0 if plan.fits else 1)


if __name__ == "__main__":
    run(main)

"""Runs a training recipe in which one process meets a fault at its third step; the other is sound.

accelerate launch --multi_gpu --num_processes 2 tests/recipes/faults_worker.py nan decoder --config ...
"""

import os
import runpy
import sys

import torch

from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.encoder.trainer import SigLIPTrainer
from tests.recipes.test_training import ROOT


def strike(trainer) -> float:
    """What the loss is multiplied by; or the memory runs out, which is a mock: there is no small memory to fill."""
    if os.environ["RANK"] == "0" or trainer.state.global_step < 2:
        return 1.0
    if fault == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return float(fault)


def break_decoder() -> None:
    compute = MllamaSFTTrainer.compute_loss
    MllamaSFTTrainer.compute_loss = lambda self, *a, **k: compute(self, *a, **k) * strike(self)


def break_encoder() -> None:
    whole = SigLIPTrainer._loss

    def loss_of(self, *args):
        factor, loss = strike(self), whole(self, *args)
        return lambda *tensors: loss(*tensors) * factor

    SigLIPTrainer._loss = loss_of


if __name__ == "__main__":
    fault, kind = sys.argv[1:3]
    {"encoder": break_encoder, "decoder": break_decoder}[kind]()
    sys.argv = [kind, *sys.argv[3:]]
    runpy.run_path(str(ROOT / "recipes" / f"{kind}.py"), run_name="__main__")

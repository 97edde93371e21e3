"""Two real steps, to hold a prediction against."""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from medfinetune.errors import InputError
from medfinetune.preflight.memory import Memory
from medfinetune.preflight.step import LiveMemory

NUM_STEPS = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """Two real optimiser steps beside what was predicted for their batches.

    Attributes:
        what: Which batch it was.
        predicted_bytes: At the worst moment, without the allowance for CUDA.
        measured_bytes: On a GPU what torch allocated at most; on a CPU the live bytes of all tensors.
        seconds: Of one optimiser step, the mean of the two.
    """

    what: str
    predicted_bytes: int
    measured_bytes: int
    seconds: float


def short_run(args: Any, output_dir: str, on_cpu: bool) -> Any:
    """The same settings for two optimiser steps that save and evaluate nothing.

    Raises:
        InputError: The config is for a GPU and there is none.
    """
    if not on_cpu and not torch.accelerator.is_available():
        raise InputError("measure: there is no GPU here; measure on the machine that trains, or set use_cpu: true")
    args = copy.copy(args)
    values = {"max_steps": NUM_STEPS, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    values |= {"output_dir": output_dir, "dataloader_num_workers": 0, "disable_tqdm": True, "report_to": []}
    for key, value in values.items():
        setattr(args, key, value)
    return args


def measure(args: Any, on_cpu: bool, what: str, predicted: Memory, make_trainer: Callable[[Any], Trainer]) -> Measured:
    """Takes two optimiser steps.

    Args:
        args: The run's settings.
        on_cpu: Whether the config is for a CPU.
        what: Which batch the trainer is given.
        predicted: For that batch.
        make_trainer: Given the settings of a short run; its dataset holds the batch for every step.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(short_run(args, folder, on_cpu))
        start = time.perf_counter()
        if on_cpu:
            before = sum(t.nbytes for t in (*trainer.model.parameters(), *trainer.model.buffers()))
            with LiveMemory(trainer.model) as memory:
                trainer.train()
            peak = before + memory.peak
        else:
            torch.accelerator.reset_peak_memory_stats()
            trainer.train()
            peak = torch.accelerator.max_memory_allocated()
        seconds = (time.perf_counter() - start) / NUM_STEPS
    return Measured(what, predicted.total - predicted.context, peak, seconds)

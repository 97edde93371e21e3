"""Puts a run's figures together: whether it fits, and which changes would make it fit."""

import math
from dataclasses import dataclass, replace
from typing import Any

from medfinetune.preflight.changes import Change, Count, Machine, Setup, changes_that_fit, fits_on, memory_on
from medfinetune.preflight.memory import Memory, Weights, optimizer_bytes, zero_optimizer_bytes
from medfinetune.preflight.step import Step


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes.

    Attributes:
        setup: What was asked for.
        machine: What it was asked for.
        note: Where the shape is from, if not from the checkpoint itself.
        weights: The model's.
        step: One micro-batch's.
        memory: Of each GPU, and of the host.
        host_bytes: The host's at its worst moment.
        checkpoint_bytes: One checkpoint on the disk.
        num_checkpoints: How many there are at once; none where `save_total_limit` does not say.
        final_bytes: The model that is saved at the end.
        cache_bytes: Of `vision_cache: disk`; the one in memory is in `memory.host`.
        tflop_per_step: One optimiser step over all processes, in 1e12 operations.
        num_rows: Training rows; none where not known.
        seconds_per_epoch: None where rows or rate are not known.
        fits: Whether it fits on each GPU, and on the host where that is given.
        changes: The first few that would make it fit, those that cost least first; empty where it does.
    """

    setup: Setup
    machine: Machine
    note: str
    weights: Weights
    step: Step
    memory: Memory
    host_bytes: int
    checkpoint_bytes: int
    num_checkpoints: int | None
    final_bytes: int
    cache_bytes: int
    tflop_per_step: float
    num_rows: int | None
    seconds_per_epoch: float | None
    fits: bool
    changes: list[Change]


def plan(
    setup: Setup, machine: Machine, count: Count, num_rows: int | None = None, note: str = "", cache_bytes: int = 0
) -> Plan:
    """Counts a run and, where it does not fit, its alternatives.

    Args:
        setup: The run.
        machine: What it is to fit on.
        count: Counts weights and a micro-batch; called once for each alternative that changes them.
        num_rows: Training rows, where known.
        note: Said beside the number of parameters.
        cache_bytes: What a cache of all images' features would take.
    """
    args = setup.args
    weights, step = count(args, setup.zero)
    cached = getattr(args, "vision_cache", "off")
    memory = memory_on(setup, machine, weights, step)
    if cached == "memory":
        memory = replace(memory, host=memory.host | {"vision cache": cache_bytes})
    host = memory.host_bytes
    steps = args.gradient_accumulation_steps * setup.num_gpus
    epoch = None
    if num_rows and machine.tflops:
        batches = math.ceil(num_rows / (args.per_device_train_batch_size * setup.num_gpus))
        epoch = batches * step.tflop / machine.tflops
    fits = fits_on(memory.total, host, machine)
    checkpoint, final = _disk(setup, weights)
    return Plan(
        setup=setup,
        machine=machine,
        note=note,
        weights=weights,
        step=step,
        memory=memory,
        host_bytes=host,
        checkpoint_bytes=checkpoint,
        num_checkpoints=_num_checkpoints(args),
        final_bytes=final,
        cache_bytes=cache_bytes if cached == "disk" else 0,
        tflop_per_step=step.tflop * steps,
        num_rows=num_rows,
        seconds_per_epoch=epoch,
        fits=fits,
        changes=[] if fits else changes_that_fit(setup, machine, count),
    )


def _disk(setup: Setup, weights: Weights) -> tuple[int, int]:
    """Bytes of one checkpoint and of the model at the end; of a LoRA run, only the adapter is saved."""
    args = setup.args
    adapter = getattr(args, "use_peft", False)
    model = weights.trained_bytes if adapter else weights.num_bytes
    if args.save_strategy == "no":
        return 0, model
    if args.save_only_model:
        return model, model
    optim = getattr(args.optim, "value", args.optim)
    if setup.zero is None:
        return model + optimizer_bytes(optim, weights)[0], model
    # DeepSpeed writes the weights once more beside its optimiser; under stage 3 the frozen ones alone.
    again = model
    if setup.zero.stage == 3:
        again = 0 if adapter else weights.num_bytes - weights.trained_bytes
    return model + again + zero_optimizer_bytes(optim, weights), model


def _num_checkpoints(args: Any) -> int | None:
    """The next checkpoint is written before the oldest is deleted; the best one may be kept besides."""
    if args.save_strategy == "no":
        return 0
    if args.save_total_limit is None:
        return None
    return args.save_total_limit + 1

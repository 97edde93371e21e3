"""The changes that would make a run fit."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from medfinetune.preflight.memory import Memory, Weights, Zero, memory_of
from medfinetune.preflight.step import Step

Count = Callable[[Any, Zero | None], tuple[Weights, Step]]
"""Settings and ZeRO -> the model's weights and one micro-batch."""
_MOST_CHANGES = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run is to fit on.

    Attributes:
        num_gpus: Processes, one for each GPU; of one machine.
        memory_bytes: Of one GPU; where `on_cpu`, what the processes share.
        host_bytes: The host's memory; none where it is not to be looked at.
        on_cpu: Trained without a GPU.
        tflops: 1e12 operations a second that one GPU really does; none where it is not known.
    """

    num_gpus: int = 1
    memory_bytes: int = 80 * 2**30
    host_bytes: int | None = None
    on_cpu: bool = False
    tflops: float | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What a change may change: settings, DeepSpeed's stage and how many GPUs there are."""

    args: Any
    zero: Zero | None
    num_gpus: int


@dataclass(frozen=True, slots=True)
class Change:
    """A way to make a run fit.

    Attributes:
        name: What to set, all of it together.
        total: Bytes a GPU takes then.
        host: Bytes the host takes then.
    """

    name: str
    total: int
    host: int


def changes_that_fit(setup: Setup, machine: Machine, count: Count) -> list[Change]:
    """The first changes that make a run fit: each alone, then each on top of all that cost less.

    Args:
        setup: A run that does not fit.
        machine: What it is to fit on.
        count: As for `plan`.
    """
    counted: dict[tuple, tuple[Weights, Step]] = {}

    def result(changed: Setup, name: str) -> Change:
        key = (*_counted_keys(changed.args), changed.zero is not None)
        if key not in counted:
            counted[key] = count(changed.args, changed.zero)
        memory = memory_on(changed, machine, *counted[key])
        return Change(name, memory.total, memory.host_bytes)

    found = []
    for change in _CHANGES:
        for changed, name in change(setup, machine):
            outcome = result(changed, name)
            if fits_on(outcome.total, outcome.host, machine):
                found.append(outcome)
                break
        if len(found) == _MOST_CHANGES:
            return found
    together, names = setup, []
    for change in _CHANGES:
        best = None
        for changed, name in change(together, machine):
            best = (changed, result(changed, "; ".join([*names, name])), name)
            if len(names) and fits_on(best[1].total, best[1].host, machine):
                return [*found, best[1]]
        if best is not None:
            together = best[0]
            names.append(best[2])
    return found


def memory_on(setup: Setup, machine: Machine, weights: Weights, step: Step) -> Memory:
    """What one process of a run needs."""
    accumulates = setup.args.gradient_accumulation_steps > 1
    optim = getattr(setup.args.optim, "value", setup.args.optim)
    return memory_of(weights, step, optim, accumulates, setup.zero, setup.num_gpus, machine.on_cpu)


def fits_on(total: int, host: int, machine: Machine) -> bool:
    """Whether each GPU, and the host where that is given, has room."""
    # Without a GPU, the processes share one memory.
    total *= machine.num_gpus if machine.on_cpu else 1
    return total <= machine.memory_bytes and (machine.host_bytes is None or host <= machine.host_bytes)


def _counted_keys(args: Any) -> tuple:
    keys = ("per_device_train_batch_size", "micro_batch_size", "activation_checkpointing", "recompute", "dtype")
    return tuple(getattr(args, key, None) for key in (*keys, "use_peft", "load_in_4bit", "load_in_8bit"))


def _with(setup: Setup, **values: Any) -> Setup:
    args = copy.copy(setup.args)
    for key, value in values.items():
        setattr(args, key, value)
    return replace(setup, args=args)


# Each yields what it would change to, the mildest first; those that cost the user least come first.


def _smaller_batch(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    """The step's batch stays as it is; an encoder's loss too, which accumulation would change."""
    args = setup.args
    batch, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if hasattr(args, "micro_batch_size"):
        size = min(args.micro_batch_size or batch, batch)
        while size > 1:
            size = math.ceil(size / 2)
            yield _with(setup, micro_batch_size=size), f"micro_batch_size: {size}"
    while batch > 1 and batch % 2 == 0 and not hasattr(args, "micro_batch_size"):
        batch, steps = batch // 2, steps * 2
        changed = _with(setup, per_device_train_batch_size=batch, gradient_accumulation_steps=steps)
        yield changed, f"per_device_train_batch_size: {batch}, gradient_accumulation_steps: {steps}"


def _checkpointing(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    """The decoder recomputes only as many layers as keep its step within stock's memory, unless told."""
    args = setup.args
    told = [] if args.activation_checkpointing else ["activation_checkpointing: true"]
    if told and getattr(args, "recompute", None) != "none":
        yield _with(setup, activation_checkpointing=True), told[0]
    if getattr(args, "recompute", "all") != "all":
        changed = _with(setup, activation_checkpointing=True, recompute="all")
        yield changed, ", ".join([*told, "recompute: all"])


def _half_weights(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if getattr(setup.args, "dtype", None) == "float32" and setup.zero is None:
        yield _with(setup, dtype="bfloat16"), "dtype: bfloat16"


def _small_optimizer(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if setup.zero is None and getattr(setup.args.optim, "value", setup.args.optim).startswith("adamw_torch"):
        for name in ("adamw_torch_fused", "adamw_8bit"):
            if not (machine.on_cpu and name == "adamw_8bit"):
                yield _with(setup, optim=name), f"optim: {name}"


def _adapters(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if getattr(setup.args, "use_peft", None) is False:
        yield _with(setup, use_peft=True), "use_peft: true (LoRA)"


def _four_bits(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    args = setup.args
    # Only the decoder's weights are large enough, and DeepSpeed does not take them.
    if hasattr(args, "max_length") and not getattr(args, "load_in_4bit", False) and setup.zero is None:
        changed = _with(setup, use_peft=True, load_in_4bit=True, load_in_8bit=False)
        yield changed, "load_in_4bit: true" if args.use_peft else "use_peft: true, load_in_4bit: true (QLoRA)"


def _zero3(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if machine.on_cpu or (setup.zero is not None and setup.zero.stage == 3) or _quantised(setup):
        return
    counts = [setup.num_gpus] if setup.num_gpus > 1 else [2, 4, 8]
    for number in counts:
        zero = replace(setup.zero or Zero(), stage=3, bucket_numbers=None)
        yield replace(setup, zero=zero, num_gpus=number), f"ZeRO-3 on {number} GPUs"


def _offload(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if machine.on_cpu or _quantised(setup) or (setup.zero is not None and setup.zero.offload_param):
        return
    zero = Zero(3, offload_optimizer=True, offload_param=True)
    yield replace(setup, zero=zero), "ZeRO-3 with optimiser and weights on the host"


def _quantised(setup: Setup) -> bool:
    return any(getattr(setup.args, key, False) for key in ("load_in_4bit", "load_in_8bit"))


_CHANGES = (_smaller_batch, _checkpointing, _half_weights, _small_optimizer, _adapters, _four_bits, _zero3, _offload)

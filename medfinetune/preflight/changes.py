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
    """The first changes that make a run fit: each alone, then each on top of all that cost less, then more GPUs.

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

    def more_gpus() -> list[Change]:
        outcomes = (result(changed, name) for changed, name in _more_gpus(setup, machine))
        fitting = next((outcome for outcome in outcomes if fits_on(outcome.total, outcome.host, machine)), None)
        return [] if fitting is None else [fitting]

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
                found.append(best[1])
                return found if len(found) == _MOST_CHANGES else [*found, *more_gpus()]
        if best is not None:
            together = best[0]
            names.append(best[2])
    return [*found, *more_gpus()]


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
                needs = " (needs bitsandbytes)" if name == "adamw_8bit" else ""
                yield _with(setup, optim=name), f"optim: {name}{needs}"


def _with_adapters(setup: Setup) -> tuple[Setup, str]:
    """What the decoder's adapters do not go with is taken back."""
    values = {"use_peft": True}
    values |= {key: True for key in ("freeze_vision", "freeze_projector") if getattr(setup.args, key, None) is False}
    return _with(setup, **values), ", ".join(f"{key}: true" for key in values)


def _adapters(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if getattr(setup.args, "use_peft", None) is False:
        changed, name = _with_adapters(setup)
        yield changed, f"{name} (LoRA)"


def _four_bits(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    args = setup.args
    # Only the decoder's weights are large enough, and DeepSpeed does not take them.
    if hasattr(args, "max_length") and not getattr(args, "load_in_4bit", False) and setup.zero is None:
        changed, name = (setup, "") if args.use_peft else _with_adapters(setup)
        changed = _with(changed, load_in_4bit=True, load_in_8bit=False)
        yield changed, f"{name}, load_in_4bit: true (QLoRA)" if name else "load_in_4bit: true"


def _zero3(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if setup.num_gpus > 1 and _may_share_weights(setup, machine) and (setup.zero is None or setup.zero.stage < 3):
        yield _on_gpus(setup, setup.num_gpus)


def _offload(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if _may_share_weights(setup, machine) and not (setup.zero is not None and setup.zero.offload_param):
        zero = Zero(3, offload_optimizer=True, offload_param=True)
        yield replace(setup, zero=zero), "ZeRO-3 with optimiser and weights on the host"


def _more_gpus(setup: Setup, machine: Machine) -> Iterator[tuple[Setup, str]]:
    if setup.num_gpus == 1 and _may_share_weights(setup, machine):
        yield from (_on_gpus(setup, number) for number in (2, 4, 8))


def _on_gpus(setup: Setup, number: int) -> tuple[Setup, str]:
    zero = replace(setup.zero or Zero(), stage=3, bucket_numbers=None)
    return replace(setup, zero=zero, num_gpus=number), f"ZeRO-3 on {number} GPUs"


def _may_share_weights(setup: Setup, machine: Machine) -> bool:
    """DeepSpeed takes no quantised weights, and an encoder's exact batches and `wise_ft` want them whole."""
    quantised = any(getattr(setup.args, key, False) for key in ("load_in_4bit", "load_in_8bit"))
    return not (machine.on_cpu or quantised or hasattr(setup.args, "micro_batch_size"))


_CHANGES = (_smaller_batch, _checkpointing, _half_weights, _small_optimizer, _adapters, _four_bits, _zero3, _offload)

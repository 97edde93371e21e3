"""What to do when memory runs out although a run was started."""

from typing import Any

import torch

from medfinetune.preflight.changes import Count, Machine, Setup, changes_that_fit, memory_on
from medfinetune.preflight.memory import read_zero
from medfinetune.preflight.step import device_bytes
from medfinetune.preflight.table import gib

_LESS = 0.9
"""A run that did not fit, whatever was counted for it, has to become smaller by a tenth at least."""


def what_would_fit(args: Any, count: Count) -> str:
    """Names the first changes that make a run smaller, in one line; they are counted now, which takes up to a minute.

    Where counting itself fails, the line says so: that memory ran out must not be hidden by a second error.

    Args:
        args: The run's settings.
        count: As for `plan`.
    """
    try:
        return _changes(args, count)
    except Exception as error:
        return (
            f"preflight could not count ({' '.join(str(error).split())[:200]}); lower per_device_train_batch_size "
            "or set gradient_checkpointing"
        )


def _changes(args: Any, count: Count) -> str:
    on_cpu = args.use_cpu or not torch.accelerator.is_available()
    zero = read_zero(args.deepspeed)
    setup, machine = Setup(args, zero, args.world_size), Machine(args.world_size, device_bytes(on_cpu), None, on_cpu)
    total = memory_on(setup, machine, *count(args, zero)).total
    most = min(machine.memory_bytes, round(_LESS * total * (args.world_size if on_cpu else 1)))
    changes = changes_that_fit(setup, Machine(args.world_size, most, None, on_cpu), count)
    if not changes:
        return f"preflight counts {gib(total)}, and knows no change that makes it fit; a smaller model is needed"
    listed = "; ".join(f"({i}) {change.name} ({gib(change.total)})" for i, change in enumerate(changes, start=1))
    return f"preflight counts {gib(total)}, and what would fit, the least costly first: {listed}"

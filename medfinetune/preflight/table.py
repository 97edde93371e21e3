"""A plan as a table to read."""

from medfinetune.preflight.measure import Measured
from medfinetune.preflight.plan import Plan

_GIB = 2**30


def describe(plan: Plan) -> str:
    """Everything that a plan holds, in lines of at most 120 characters; memory in GiB of 2^30 bytes."""
    return "\n".join([*_parameters(plan), "", *_memory(plan), "", *_disk_and_time(plan), "", *_verdict(plan)])


def describe_measured(measured: Measured) -> str:
    """Predicted beside measured."""
    ratio = measured.predicted_bytes / measured.measured_bytes
    return "\n".join(
        [
            "",
            f"two real steps: {measured.what}",
            _row("predicted, without the allowance", gib(measured.predicted_bytes)),
            _row("measured", gib(measured.measured_bytes), f"predicted / measured: {ratio:.2f}"),
            _row("seconds a step", f"{measured.seconds:.2f}"),
        ]
    )


def gib(num_bytes: float) -> str:
    """`1.50 GiB`; below a tenth, `12.3 MiB`."""
    return f"{num_bytes / _GIB:,.2f} GiB" if num_bytes >= 0.1 * _GIB else f"{num_bytes / 2**20:,.1f} MiB"


def _row(name: str, value: str, note: str = "") -> str:
    return f"  {name:<46} {value:>16}{f'  {note}' if note else ''}"


def _parameters(plan: Plan) -> list[str]:
    weights = plan.weights
    return [
        f"parameters{f' ({plan.note})' if plan.note else ''}",
        _row("trained", f"{weights.num_trained:,}"),
        _row("frozen", f"{weights.num_frozen:,}"),
        _row("quantised (of the frozen)", f"{weights.num_quantised:,}"),
    ]


def _memory(plan: Plan) -> list[str]:
    memory, machine, zero = plan.memory, plan.machine, plan.setup.zero
    where = "of each process, on the CPU" if machine.on_cpu else f"of each GPU ({plan.setup.num_gpus})"
    lines = [
        f"memory {where}, {f'DeepSpeed ZeRO-{zero.stage}' if zero else 'no DeepSpeed'}",
        _row(
            "weights", gib(memory.weights), "this GPU's share and what is gathered" if zero and zero.stage == 3 else ""
        ),
        _row("gradients", gib(memory.gradients)),
        _row("optimiser states", gib(memory.optimizer), "and its fp32 weights" if zero else ""),
        _row("activations of one micro-batch, at the peak", gib(memory.activations)),
    ]
    if plan.step.num_recomputed:
        lines.append(_row("text layers that are computed twice for it", f"{plan.step.num_recomputed}"))
    if memory.communication:
        lines.append(_row("buckets for reducing gradients", gib(memory.communication)))
    if memory.step_temporaries:
        lines.append(_row("for a moment, in the optimiser's step", gib(memory.step_temporaries)))
    if memory.context:
        lines.append(_row("CUDA itself and fragmentation", gib(memory.context), "an allowance, not counted"))
    lines.append(_row("at the worst moment", gib(memory.total), "not all of the above is there at once"))
    if memory.host:
        lines += ["", "memory of the host", *(_row(name, gib(size)) for name, size in memory.host.items())]
        lines.append(_row("at the worst moment", gib(plan.host_bytes), "not all of the above is there at once"))
    return lines


def _disk_and_time(plan: Plan) -> list[str]:
    lines = ["disk"]
    if plan.checkpoint_bytes:
        number = plan.num_checkpoints
        count = "each; save_total_limit is not set" if number is None else f"x {number} at most at once"
        lines.append(_row("a checkpoint", gib(plan.checkpoint_bytes), count))
    lines.append(_row("the model at the end", gib(plan.final_bytes)))
    if plan.cache_bytes:
        lines.append(_row("vision cache", gib(plan.cache_bytes)))
    lines += ["", "time", _row("one optimiser step, all processes", f"{plan.tflop_per_step:,.1f} TFLOP")]
    if plan.num_rows:
        lines.append(_row("training rows", f"{plan.num_rows:,}"))
    if plan.seconds_per_epoch is not None:
        seconds, rate = plan.seconds_per_epoch, plan.machine.tflops
        shown = f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
        lines.append(_row("an epoch", shown, f"at {rate:g} TFLOP a second and GPU; reading data comes on top"))
    else:
        lines.append(_row("an epoch", "-", f"give {'--tflops' if plan.num_rows else '--num_rows and --tflops'}"))
    return lines


def _verdict(plan: Plan) -> list[str]:
    machine = plan.machine
    whole = plan.memory.total * (plan.setup.num_gpus if machine.on_cpu else 1)
    device = "host" if machine.on_cpu else "GPU"
    takes = f"{gib(whole)} of the {device}'s {gib(machine.memory_bytes)}"
    if machine.host_bytes is not None and not machine.on_cpu:
        takes += f", {gib(plan.host_bytes)} of the host's {gib(machine.host_bytes)}"
    if plan.fits:
        return [f"it fits: {takes}"]
    lines = [f"it does NOT fit: {takes}"]
    if not plan.changes:
        return [*lines, "none of the changes known here makes it fit: a smaller model or a larger machine is needed"]
    lines.append("what would make it fit, the least costly first:")
    for number, change in enumerate(plan.changes, start=1):
        lines.append(f"  {number}. {change.name}")
        lines.append(f"     {gib(change.total)} on each {device}, {gib(change.host)} on the host")
    return lines

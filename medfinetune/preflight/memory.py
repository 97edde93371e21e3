"""Bytes of weights, gradients and optimiser states, on each device and on the host, under DeepSpeed ZeRO or without."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medfinetune.errors import InputError
from medfinetune.preflight.step import Step

NOT_QUANTISED = ("lm_head", "vision_model", "multi_modal_projector", "lora_")
"""What stays in 16 bits under `load_in_4bit` and `load_in_8bit`."""
CONTEXT_BYTES = 2**30
"""An allowance on a GPU for CUDA's context, its libraries and fragmentation; not measured."""
LOADED, OFFLOADED = "weights while they are loaded", "offloaded weights"
_FP32 = 4
_BLOCKS = 4 / 256  # 8-bit optimisers: an fp32 scale for each block of 256

# Number of states, bytes of each (none: the parameter's own), whether they may be paged out to the host.
_OPTIMIZERS: dict[str, tuple[int, float | None, bool]] = {
    "adamw_torch": (2, None, False),
    "adamw_torch_fused": (2, None, False),
    "adamw_torch_8bit": (2, 1 + _BLOCKS, False),
    "adamw_torch_4bit": (2, 0.5 + 4 / 128, False),
    "adamw_8bit": (2, 1 + _BLOCKS, False),
    "adamw_bnb_8bit": (2, 1 + _BLOCKS, False),
    "paged_adamw_32bit": (2, 4, True),
    "paged_adamw_8bit": (2, 1 + _BLOCKS, True),
    "ademamix": (3, 4, False),
    "ademamix_8bit": (3, 1 + _BLOCKS, False),
    "paged_ademamix_32bit": (3, 4, True),
    "paged_ademamix_8bit": (3, 1 + _BLOCKS, True),
    "lion_32bit": (1, 4, False),
    "lion_8bit": (1, 1 + _BLOCKS, False),
    "paged_lion_32bit": (1, 4, True),
    "paged_lion_8bit": (1, 1 + _BLOCKS, True),
    "rmsprop": (1, None, False),
    "rmsprop_bnb": (1, 4, False),
    "rmsprop_bnb_32bit": (1, 4, False),
    "rmsprop_bnb_8bit": (1, 1 + _BLOCKS, False),
    "adagrad": (1, None, False),
    "adafactor": (0, None, False),  # a row and a column for each matrix
    "sgd": (0, None, False),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of one copy of a model.

    Attributes:
        num_trained: How many have a gradient.
        num_frozen: How many have none; those that are quantised are among them.
        num_quantised: How many are kept in 4 or 8 bits.
        num_bytes: Of all, as they are kept.
        trained_bytes: Of those that have a gradient.
        largest_bytes: Of the largest tensor that has a gradient.
        dequantised_bytes: Of the largest quantised matrix, in 16 bits as it is used.
    """

    num_trained: int
    num_frozen: int
    num_quantised: int
    num_bytes: int
    trained_bytes: int
    largest_bytes: int
    dequantised_bytes: int


@dataclass(frozen=True, slots=True)
class Zero:
    """What of a DeepSpeed configuration decides about memory.

    Attributes:
        stage: 0: nothing is shared; 1: optimiser states; 2: gradients too; 3: weights too.
        offload_optimizer: States, fp32 weights and gradients are on the host.
        offload_param: The weights are too.
        bucket_numbers: Gradients that are reduced at once; none where `auto` (hidden size squared, which is small).
        live_numbers: Weights that stage 3 keeps gathered.
    """

    stage: int = 0
    offload_optimizer: bool = False
    offload_param: bool = False
    bucket_numbers: int | None = None
    live_numbers: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each device at the worst moment of a step, and on the host.

    Attributes:
        weights: With ZeRO-3, this process's share and what is gathered.
        gradients: Of all that is trained.
        optimizer: States, and under ZeRO the fp32 weights that they belong to.
        activations: Activations and temporaries of one micro-batch, at their peak.
        communication: Buckets in which processes reduce gradients.
        step_temporaries: What the optimiser's step takes for a moment.
        context: The allowance for CUDA itself.
        total: At the worst moment: gradients and activations need not be there at once.
        host: What is in the host's memory, for all processes of one machine, by what it is for.
        host_bytes: Of those at the worst moment: states come when what was loaded is gone.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    communication: int
    step_temporaries: int
    context: int
    total: int
    host: dict[str, int]

    @property
    def host_bytes(self) -> int:
        at_start = self.host.get(LOADED, 0) + self.host.get(OFFLOADED, 0)
        return max(at_start, sum(self.host.values()) - self.host.get(LOADED, 0))


def count_weights(model: nn.Module, bits: int = 0, double_quant: bool = True) -> Weights:
    """Counts the parameters of a model, on fake tensors or real.

    Args:
        model: Its weights are not yet quantised.
        bits: 4 or 8 counts its frozen linear layers as they will be kept; 0 as they are.
        double_quant: Whether the scales of 4-bit blocks of 64 are quantised too.
    """
    quantised = {}
    if bits:
        for name, module in model.named_modules():
            plain = isinstance(module, nn.Linear) and not module.weight.requires_grad
            if plain and not any(part in name for part in NOT_QUANTISED):
                quantised[id(module.weight)] = module.weight
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    num_quantised = sum(p.numel() for p in quantised.values())
    # Scales of 4 bits: fp32 for each block of 64; in double quantisation 8 bits, and fp32 for each 256 of those.
    scales = (1 / 64 + 4 / (64 * 256) if double_quant else 4 / 64) if bits == 4 else 0
    num_bytes = sum(_bytes(p) for p in parameters if id(p) not in quantised)
    num_bytes += sum(_bytes(b) for b in model.buffers()) + round(num_quantised * (bits / 8 + scales))
    return Weights(
        num_trained=sum(p.numel() for p in trained),
        num_frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        num_quantised=num_quantised,
        num_bytes=num_bytes,
        trained_bytes=sum(map(_bytes, trained)),
        largest_bytes=max(map(_bytes, trained), default=0),
        dequantised_bytes=max((2 * p.numel() for p in quantised.values()), default=0),
    )


def read_zero(deepspeed: str | dict[str, Any] | None) -> Zero | None:
    """Reads a DeepSpeed configuration, which need not be installed.

    Args:
        deepspeed: A JSON file or its content; none for a run without DeepSpeed.

    Raises:
        InputError: The file is missing or no JSON, or asks for a stage that there is not.
    """
    if not deepspeed:
        return None
    if isinstance(deepspeed, str):
        try:
            deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"deepspeed: {deepspeed}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise InputError(f"deepspeed: {deepspeed}: is no JSON ({error})") from error
    if not isinstance(deepspeed, dict):
        raise InputError(f"deepspeed: must be a JSON file or a mapping, not a {type(deepspeed).__name__}")
    options = deepspeed.get("zero_optimization", {})
    stage = options.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise InputError(f"deepspeed: zero_optimization.stage: {stage!r}: must be 0, 1, 2 or 3")
    states, weights = (
        (options.get(key) or {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")
    )
    if weights and stage != 3:
        raise InputError(f"deepspeed: zero_optimization.offload_param: needs stage 3, not {stage}")
    bucket, live = options.get("reduce_bucket_size", 500_000_000), options.get("stage3_max_live_parameters", 1e9)
    return Zero(
        stage, states, weights, None if bucket == "auto" else int(bucket), 10**9 if live == "auto" else int(live)
    )


def optimizer_bytes(optim: str, weights: Weights) -> tuple[int, bool]:
    """Bytes of an optimiser's states without ZeRO, and whether they may be paged out to the host.

    One that is not known here is taken for AdamW, with two states.
    """
    num_states, size, paged = _OPTIMIZERS.get(optim, _OPTIMIZERS["adamw_torch"])
    each = weights.trained_bytes if size is None else weights.num_trained * size
    return round(num_states * each), paged


def memory_of(
    weights: Weights, step: Step, optim: str, accumulates: bool, zero: Zero | None, num_gpus: int, on_cpu: bool
) -> Memory:
    """Adds up what one process needs.

    Args:
        weights: Of the whole model, in the dtype in which it is trained.
        step: One micro-batch.
        optim: The Trainer's name of the optimiser.
        accumulates: Whether gradients of earlier micro-batches are there while one is computed.
        zero: None without DeepSpeed.
        num_gpus: Processes, all of one machine.
        on_cpu: Whether the device is the host itself.
    """
    context = 0 if on_cpu else CONTEXT_BYTES
    if zero is not None:
        return _under_zero(weights, step, optim, zero, num_gpus, context)
    states, paged = optimizer_bytes(optim, weights)
    # The multi-tensor AdamW makes one more copy of what it steps; the fused one does not.
    temporaries = weights.largest_bytes
    if optim.endswith("_fused"):
        temporaries = 0
    elif not on_cpu and optim == "adamw_torch":
        temporaries = weights.trained_bytes
    buckets = weights.trained_bytes if num_gpus > 1 else 0
    backward = weights.trained_bytes + step.activation_bytes if accumulates else step.peak_bytes
    total = weights.num_bytes + buckets + context + (0 if paged else states)
    total += max(backward, weights.trained_bytes + temporaries)
    host = {} if on_cpu else {LOADED: weights.num_bytes * num_gpus}
    if paged:
        host["paged optimiser states"] = states * num_gpus
    return Memory(
        weights=weights.num_bytes,
        gradients=weights.trained_bytes,
        optimizer=0 if paged else states,
        activations=step.activation_bytes,
        communication=buckets,
        step_temporaries=temporaries,
        context=context,
        total=total,
        host=host,
    )


def _under_zero(weights: Weights, step: Step, optim: str, zero: Zero, num_gpus: int, context: int) -> Memory:
    """DeepSpeed keeps fp32 weights beside the model's, and the optimiser's states belong to those."""
    kept = zero_optimizer_bytes(optim, weights)
    states = kept // num_gpus if zero.stage >= 1 else kept
    gradients = weights.trained_bytes // num_gpus if zero.stage >= 2 else weights.trained_bytes
    num_weights = weights.num_trained + weights.num_frozen
    size = weights.num_bytes / max(num_weights, 1)
    mine = weights.num_bytes
    if zero.stage == 3:
        gathered = round(min(zero.live_numbers, num_weights) * size) if num_gpus > 1 or zero.offload_param else 0
        mine = min(weights.num_bytes, (0 if zero.offload_param else weights.num_bytes // num_gpus) + gathered)
    bucket = min(zero.bucket_numbers or 0, weights.num_trained)
    buckets = 2 * round(bucket * weights.trained_bytes / max(weights.num_trained, 1))
    # Under stage 3 only the first process reads the checkpoint's values, and hands them out.
    host = {LOADED: weights.num_bytes * (1 if zero.stage == 3 else num_gpus)}
    if zero.offload_optimizer:
        host["offloaded optimiser states, fp32 weights and gradients"] = kept + _FP32 * weights.num_trained
        states, gradients = 0, gradients if zero.stage < 2 else 0
    if zero.offload_param:
        host[OFFLOADED] = weights.num_bytes
    return Memory(
        weights=mine,
        gradients=gradients,
        optimizer=states,
        activations=step.activation_bytes,
        communication=buckets,
        step_temporaries=0,
        context=context,
        total=mine + gradients + states + step.activation_bytes + buckets + context,
        host=host,
    )


def zero_optimizer_bytes(optim: str, weights: Weights) -> int:
    """Bytes that the optimiser and its fp32 weights take over all processes together, under ZeRO."""
    num_states, size, _ = _OPTIMIZERS.get(optim, _OPTIMIZERS["adamw_torch"])
    return round(weights.num_trained * (_FP32 + num_states * (size or _FP32)))


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()

"""What a SigLIP run will take: the model on fake tensors, and one step of a whole batch."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from medfinetune.data.chat import PAIRS_FILE
from medfinetune.data.load import load_pairs
from medfinetune.encoder.adapter import prepare_to_learn
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.encoder.exact import exact_backward, whole_batch_loss
from medfinetune.encoder.labels import NUM_GROUPS
from medfinetune.errors import InputError, require_model_type
from medfinetune.preflight.changes import Machine, Setup
from medfinetune.preflight.memory import Weights, Zero, count_weights
from medfinetune.preflight.plan import Plan, plan
from medfinetune.preflight.step import Step, count_step, mixed_precision, without_memory
from medfinetune.training import splits_for_training

_PIECES = 3
_TOKENS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}  # transformers' defaults are another model's
_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "medsiglip": (1152, 27, 16, 4304),
}
"""Width, layers, heads and inner width of both towers, by a word of the published name."""


def preflight(args: SigLIPConfig, machine: Machine, zero: Zero | None = None, num_rows: int | None = None) -> Plan:
    """Counts what a run takes, and looks for changes where it does not fit; loads no weights.

    Args:
        args: The run's settings.
        machine: What it runs on.
        zero: The DeepSpeed stage; none without DeepSpeed.
        num_rows: Training pairs; those in `args.data_dir` where left out.

    Raises:
        InputError: The folder named holds no SigLIP, or `image_size_px` is no multiple of its patch.
    """
    config, note = shape_of(args)
    rows = num_rows or count_rows(args)
    return plan(Setup(args, zero, machine.num_gpus), machine, partial(count_run, config=config), rows, note)


def shape_of(args: SigLIPConfig) -> tuple[SiglipConfig, str]:
    """The shape of a local checkpoint, or that of the name and a note that says so; at the run's image size.

    Raises:
        InputError: The folder named holds no SigLIP, or `image_size_px` is no multiple of its patch.
    """
    require_model_type(args.model_name_or_path, "siglip")
    if Path(args.model_name_or_path).is_dir():
        config, note = SiglipConfig.from_pretrained(args.model_name_or_path), ""
    else:
        config, note = _published_shape(args.model_name_or_path)
    vision = config.vision_config
    if args.image_size_px is not None:
        if args.image_size_px < 1 or args.image_size_px % vision.patch_size:
            raise InputError(
                f"image_size_px: {args.image_size_px} is no multiple of the patch of {vision.patch_size} px"
            )
        vision.image_size = args.image_size_px
    return config, note


def _published_shape(name: str) -> tuple[SiglipConfig, str]:
    """Google's names say it: siglip-so400m-patch14-384, siglip-base-patch16-256-multilingual, siglip2-..."""
    low = name.rsplit("/", 1)[-1].lower()
    size = next((size for size in _SIZES if size in low), "base")
    width, layers, heads, inner = _SIZES[size]
    shape = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }
    patch = re.search(r"patch(\d+)", low)
    side = re.search(r"(?:patch\d+|medsiglip)-(\d+)", low)
    vision = {
        "patch_size": int(patch[1]) if patch else 14 if size == "medsiglip" else 16,
        "image_size": int(side[1]) if side else 224,
    }
    num_words = 256_000 if "siglip2" in low else 250_000 if "multilingual" in low or "i18n" in low else 32_000
    text = {"vocab_size": num_words, "projection_size": width}
    config = SiglipConfig(text_config=_TOKENS | shape | text, vision_config=shape | vision)
    return config, f"of a SigLIP {size}'s shape, by its name; the checkpoint was not looked at"


def count_rows(args: SigLIPConfig) -> int | None:
    """Training pairs of the wanted tasks; none where the data are not there."""
    if not (Path(args.data_dir) / PAIRS_FILE).is_file():
        return None
    return len(splits_for_training(load_pairs(args.data_dir), args.tasks, args)[0])


def count_run(args: SigLIPConfig, zero: Zero | None, config: SiglipConfig) -> tuple[Weights, Step]:
    """Counts the weights and one batch of a process."""
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    dtype = torch.float32 if zero is None else half or torch.float32
    with without_memory(dtype):
        model = _model(args, config)
    weights = count_weights(model)
    if zero is None:
        mixed_precision(model, half)
    batch = args.per_device_train_batch_size
    micro = min(args.micro_batch_size or batch, batch)
    # Further micro-batches add their inputs, and the same arithmetic as those before: 3 stand for all. A piece goes
    # forward twice and backward, at twice the cost of a forward; the last goes forward once.
    rows = min(batch, _PIECES * micro)
    step = count_step(model, _step(args, config, model, dtype, rows, micro))
    rest = (batch - rows) * (3 * config.vision_config.image_size**2 * dtype.itemsize + 8 * args.max_text_length)
    scale = (4 * batch / micro - 1) / (4 * rows / micro - 1)
    return weights, Step(step.peak_bytes + rest, step.activation_bytes + rest, step.tflop * scale)


def _model(args: SigLIPConfig, config: SiglipConfig) -> Any:
    """As `load_encoder` and `SigLIPTrainer` make it."""
    model: Any = SiglipModel(config)
    model.train()
    model = prepare_to_learn(model, args)
    if args.activation_checkpointing:
        kwargs = {"use_reentrant": False, **(args.activation_checkpointing_kwargs or {})}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        if args.use_peft:
            model.enable_input_require_grads()
    return model


def _step(
    args: SigLIPConfig, config: SiglipConfig, model: Any, dtype: torch.dtype, batch: int, micro: int
) -> Callable[[], None]:
    """As `SigLIPTrainer.training_step`: in one piece, or exactly in micro-batches."""
    side = config.vision_config.image_size
    groups = torch.zeros(batch, NUM_GROUPS, dtype=torch.long)
    loss = whole_batch_loss(groups, groups, 0, args.duplicates, args.loss_type)

    def embed(piece: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = model(**piece)
        return outputs.image_embeds, outputs.text_embeds

    def step() -> None:
        log_scale, bias = (getattr(model, name).squeeze() for name in ("logit_scale", "logit_bias"))
        inputs = {
            "pixel_values": torch.zeros(batch, 3, side, side, dtype=dtype),
            "input_ids": torch.zeros(batch, args.max_text_length, dtype=torch.long),
        }
        if micro == batch:
            outputs = model(**inputs)
            loss(outputs.image_embeds, outputs.text_embeds, log_scale.exp(), bias).backward()
            return
        exact_backward(
            embed, inputs, micro, log_scale, bias, loss, lambda surrogate, last: surrogate.backward(), nullcontext
        )

    return step

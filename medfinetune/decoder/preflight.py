"""What a Mllama run will take: the model on fake tensors, and one step of its longest batch."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.modeling_mllama import MllamaVisionModel
from trl.trainer.utils import add_fused_lm_head

from medfinetune.data.chat import CHATS_FILE
from medfinetune.data.load import load_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import load_decoder, lora_config, skip_cross_attention_without_image
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.decoder.vision import _encode, use_fast_vision
from medfinetune.errors import InputError, require_model_type
from medfinetune.preflight.changes import Machine, Setup
from medfinetune.preflight.measure import NUM_STEPS, Measured, measure
from medfinetune.preflight.memory import Weights, Zero, count_weights, memory_of
from medfinetune.preflight.plan import Plan, plan
from medfinetune.preflight.step import Step, count_step, mixed_precision, without_memory
from medfinetune.training import splits_for_training


def preflight(
    args: MllamaSFTConfig,
    machine: Machine,
    zero: Zero | None = None,
    num_images: int = 1,
    num_tiles: int = 4,
    num_rows: int | None = None,
) -> Plan:
    """Counts what a run takes, and looks for changes where it does not fit; loads no weights.

    Args:
        args: The run's settings.
        machine: What it runs on.
        zero: The DeepSpeed stage; none without DeepSpeed.
        num_images: Images of a chat.
        num_tiles: Tiles of an image, at most 4; fewer are less arithmetic, and with a trained tower the same memory.
        num_rows: Training chats; those in `args.data_dir` where left out.

    Raises:
        InputError: The folder named holds no Mllama.
    """
    config, note = shape_of(args.model_name_or_path)
    count = partial(count_run, config=config, num_images=num_images, num_tiles=num_tiles)
    vision = config.vision_config
    num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    image_bytes = num_images * vision.max_num_tiles * num_tokens * config.text_config.hidden_size * 2
    rows = num_rows or count_rows(args)
    return plan(Setup(args, zero, machine.num_gpus), machine, count, rows, note, (rows or 0) * image_bytes)


def shape_of(name: str) -> tuple[MllamaConfig, str]:
    """The shape of a local checkpoint, or the 11B shape and a note that says so."""
    require_model_type(name, "mllama")
    if Path(name).is_dir():
        return MllamaConfig.from_pretrained(name), ""
    # Its own config says 560 px where transformers' default is 448.
    return MllamaConfig(vision_config={"image_size": 560}), "of the 11B shape; the checkpoint was not looked at"


def count_rows(args: MllamaSFTConfig) -> int | None:
    """Training chats of the wanted tasks; none where the data are not there."""
    if not (Path(args.data_dir) / CHATS_FILE).is_file():
        return None
    return len(splits_for_training(load_chats(args.data_dir), args.tasks, args)[0])


def count_run(
    args: MllamaSFTConfig, zero: Zero | None, config: MllamaConfig, num_images: int = 1, num_tiles: int = 4
) -> tuple[Weights, Step]:
    """Counts the weights and one micro-batch in which every chat has `max_length` tokens."""
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    bits = 4 if getattr(args, "load_in_4bit", False) else 8 if getattr(args, "load_in_8bit", False) else 0
    # DeepSpeed keeps the whole model in the dtype that it computes in, and casts nothing on the way.
    dtype = getattr(torch, args.dtype) if zero is None else half or torch.float32
    with without_memory(dtype):
        model = _model(args, config, float_adapters=zero is None and not bits, num_tiles=num_tiles)
    weights = count_weights(model, bits, getattr(args, "bnb_4bit_use_double_quant", True))
    if zero is None:
        mixed_precision(model, half)
    step = count_step(model, _step(args, config, model, num_images))
    extra = weights.dequantised_bytes
    return weights, Step(step.peak_bytes + extra, step.activation_bytes + extra, step.tflop)


def measure_run(args: MllamaSFTConfig, machine: Machine, zero: Zero | None) -> Measured:
    """Takes two real steps on the longest chats, with the checkpoint and the data that the config names.

    Raises:
        InputError: DeepSpeed is asked for, or the checkpoint, the data or the GPU are not there.
    """
    if zero is not None:
        raise InputError("measure: does not start DeepSpeed; measure without the key deepspeed")
    rows, _ = splits_for_training(load_chats(args.data_dir), args.tasks, args)
    model, processor = load_decoder(args.model_name_or_path, args.model_revision, args.dtype)
    collator = MllamaCollator(processor, args.max_length, args.train_on, args.date_string)
    plain = rows.select_columns(["id", "messages"])
    lengths = [len(collator.encode(row).input_ids) for row in plain]
    size = args.per_device_train_batch_size
    longest = sorted(range(len(rows)), key=lambda i: -lengths[i])[:size]
    number = size * args.gradient_accumulation_steps * NUM_STEPS
    same = rows.select([longest[i % len(longest)] for i in range(number)])
    told = copy.copy(args)
    told.max_length = lengths[longest[0]]
    images = max(len(row["images"]) for row in same.select(range(min(size, len(longest)))))
    counted = count_run(told, None, model.config, max(images, 1))
    accumulates = args.gradient_accumulation_steps > 1
    predicted = memory_of(*counted, args.optim, accumulates, None, 1, machine.on_cpu)
    return measure(
        args,
        machine.on_cpu,
        f"{size} chats of up to {told.max_length} tokens",
        predicted,
        lambda short: MllamaSFTTrainer(model, short, same, None, processor),
    )


def _model(args: MllamaSFTConfig, config: MllamaConfig, float_adapters: bool, num_tiles: int) -> Any:
    """As `load_decoder` and `MllamaSFTTrainer` make it."""
    model: Any = MllamaForConditionalGeneration(config)
    model.train()
    skip_cross_attention_without_image(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    if args.use_peft:
        model = get_peft_model(model, lora_config(args), autocast_adapter_dtype=float_adapters)
    else:
        model.model.vision_model.requires_grad_(not args.freeze_vision)
        model.model.multi_modal_projector.requires_grad_(not getattr(args, "freeze_projector", False))
        if getattr(args, "train_cross_attention_only", False):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("cross_attn" in name)
    if args.activation_checkpointing:
        kwargs = {"use_reentrant": False, **(args.activation_checkpointing_kwargs or {})}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        if args.use_peft:
            model.enable_input_require_grads()
    if args.fast_vision:
        use_fast_vision(model)
        tower = next(module for module in model.modules() if isinstance(module, MllamaVisionModel))
        tower.forward = partial(_encode_without_data, tower, num_tiles)
    return model


def _encode_without_data(
    tower: Any, num_tiles: int, pixel_values: Tensor, aspect_ratio_ids: Tensor, **_: Any
) -> BaseModelOutput:
    """As `use_fast_vision`, told what it would read from the data: how many tiles, and that no two images are equal."""
    with torch.set_grad_enabled(any(p.requires_grad for p in tower.parameters())):
        images = pixel_values.flatten(0, 1).to(tower.dtype)
        features = _encode(tower, images, aspect_ratio_ids.reshape(-1), num_tiles)
    return BaseModelOutput(last_hidden_state=features.unflatten(0, pixel_values.shape[:2]))


def _step(args: MllamaSFTConfig, config: MllamaConfig, model: Any, num_images: int) -> Callable[[], None]:
    batch, length = args.per_device_train_batch_size, args.max_length
    tiles, side = config.vision_config.max_num_tiles, config.vision_config.image_size

    def step() -> None:
        tokens = torch.zeros(batch, length, dtype=torch.long)
        inputs = {
            "input_ids": tokens,
            "labels": tokens,
            "pixel_values": torch.zeros(batch, num_images, tiles, 3, side, side),
            "aspect_ratio_ids": torch.ones(batch, num_images, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(batch, num_images, tiles, dtype=torch.long),
            "cross_attention_mask": torch.ones(batch, length, num_images, tiles, dtype=torch.long),
        }
        model(**inputs, fused_lm_head=True).loss.backward()

    return step

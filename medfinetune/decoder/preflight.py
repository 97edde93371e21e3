"""What a Mllama run will take: the model on fake tensors, and one step of its longest batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import MllamaConfig, MllamaForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from medfinetune.data.chat import CHATS_FILE
from medfinetune.data.load import load_chats
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.cross_attention import use_exact_rows
from medfinetune.decoder.head import score_labels_only
from medfinetune.decoder.model import freeze, lora_config, shape_of
from medfinetune.decoder.recompute import GIB, measure_stored_bytes, recompute_layers, without_zero3
from medfinetune.decoder.vision import use_fast_vision
from medfinetune.preflight.changes import Machine, Setup
from medfinetune.preflight.memory import Weights, Zero, count_weights
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
        num_images: Images of a chat; 0 for chats of text alone.
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


def count_rows(args: MllamaSFTConfig) -> int | None:
    """Training chats of the wanted tasks; none where the data are not there."""
    if not (Path(args.data_dir) / CHATS_FILE).is_file():
        return None
    return len(splits_for_training(load_chats(args.data_dir), args.tasks, args)[0])


def count_run(
    args: MllamaSFTConfig, zero: Zero | None, config: MllamaConfig, num_images: int = 1, num_tiles: int = 4
) -> tuple[Weights, Step]:
    """Counts the weights and one micro-batch in which every chat has `max_length` tokens, all of them learned."""
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    bits = 4 if args.load_in_4bit else 8 if args.load_in_8bit else 0
    # DeepSpeed keeps the whole model in the dtype that it computes in, and casts nothing on the way.
    dtype = getattr(torch, args.dtype) if zero is None else half or torch.float32
    with without_zero3(), without_memory(dtype):
        model = _model(args, config, float_adapters=zero is None and not bits)
    num_recomputed = num_recomputed_layers(model, args, num_images)
    recompute_layers(model, num_recomputed)
    weights = count_weights(model, bits, args.bnb_4bit_use_double_quant)
    if zero is None:
        mixed_precision(model, half)
    step = count_step(model, _step(args, config, model, num_images, num_tiles))
    extra = weights.dequantised_bytes
    return weights, Step(step.peak_bytes + extra, step.activation_bytes + extra, step.tflop, num_recomputed)


def num_recomputed_layers(model: Any, args: MllamaSFTConfig, num_images: int) -> int:
    """How many text layers a run recomputes.

    Args:
        model: With or without adapters, what is frozen frozen.
        args: The run's settings.
        num_images: Images of a row; without any, stock stores nothing in the tower either.
    """
    num_layers = model.config.text_config.num_hidden_layers
    if not args.activation_checkpointing or args.recompute == "none":
        return 0
    if args.recompute == "all":
        return num_layers
    stored = measure_stored_bytes(
        model.config,
        lora_config(args) if args.use_peft else None,
        args.per_device_train_batch_size,
        args.max_length,
        num_images,
        getattr(torch, args.dtype),
        args.bf16,
    )
    if args.recompute_memory_gib is not None:
        return stored.num_recomputed(int(args.recompute_memory_gib * GIB))
    trains = any("vision_model" in name and parameter.requires_grad for name, parameter in model.named_parameters())
    saves_tower = args.fast_vision and not trains
    return stored.num_recomputed(stored.budget if saves_tower else stored.peak(num_layers))


def _model(args: MllamaSFTConfig, config: MllamaConfig, float_adapters: bool) -> Any:
    """As `load_decoder` and `MllamaSFTTrainer` make it."""
    model: Any = MllamaForConditionalGeneration(config)
    model.train()
    use_exact_rows(model, args.reference_attention_mask)
    use_fast_vision(model, args.fast_vision)
    whole = model
    if args.use_peft:
        model = get_peft_model(model, lora_config(args), autocast_adapter_dtype=float_adapters)
    else:
        freeze(model, args)
    if args.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if args.use_peft:
            model.enable_input_require_grads()
    add_fused_lm_head(whole, outputs=("log_probs", "entropy", "is_top1"))
    score_labels_only(whole)
    return model


def _step(
    args: MllamaSFTConfig, config: MllamaConfig, model: Any, num_images: int, num_tiles: int
) -> Callable[[], None]:
    """Masks and labels are real tensors: what is computed follows from their values."""
    batch, length = args.per_device_train_batch_size, args.max_length
    slots, side = config.vision_config.max_num_tiles, config.vision_config.image_size
    tokens = torch.zeros(batch, length, dtype=torch.long)
    inputs = {"input_ids": tokens, "labels": tokens}
    if num_images:
        tiles = torch.zeros(batch, num_images, slots, dtype=torch.long)
        tiles[..., :num_tiles] = 1
        inputs |= {
            "aspect_ratio_ids": torch.ones(batch, num_images, dtype=torch.long),
            "aspect_ratio_mask": tiles,
            "cross_attention_mask": tiles[:, None].expand(-1, length, -1, -1).contiguous(),
        }

    def step() -> None:
        pixels = {"pixel_values": torch.zeros(batch, num_images, slots, 3, side, side)} if num_images else {}
        model(**inputs, **pixels, fused_lm_head=True).loss.backward()

    return step

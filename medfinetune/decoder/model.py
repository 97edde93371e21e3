"""Loads a Mllama checkpoint, or a LoRA adapter on top of one."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoTokenizer,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
)

from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.cross_attention import use_exact_rows
from medfinetune.decoder.vision import use_fast_vision
from medfinetune.errors import InputError, require_model_type, why_not_loaded


def load_decoder(
    model_name_or_path: str, model_revision: str | None = None, dtype: str = "float32"
) -> tuple[Any, MllamaProcessor]:
    """Loads model and processor, by safetensors only.

    Args:
        model_name_or_path: A folder or a name on the Hub: a whole checkpoint, or a folder with a LoRA adapter, whose
            base model is then loaded too.
        model_revision: The commit, tag or branch on the Hub.
        dtype: `float32`, `bfloat16` or `float16`.

    Raises:
        InputError: The checkpoint cannot be read or holds no Mllama.
    """
    require_model_type(model_name_or_path, "mllama")
    try:
        adapter = Path(model_name_or_path) / "adapter_config.json"
        if adapter.is_file():
            settings = json.loads(adapter.read_text(encoding="utf-8"))
            base = _load_model(settings["base_model_name_or_path"], settings.get("revision"), dtype)
            beside = adapter.with_name("config.json")
            if beside.is_file() and json.loads(beside.read_text(encoding="utf-8")).get("reference_attention_mask"):
                base.config.reference_attention_mask = True
                use_exact_rows(base, True)
            model: Any = PeftModel.from_pretrained(base, model_name_or_path)
        else:
            model = _load_model(model_name_or_path, model_revision, dtype)
        return model.eval(), load_processor(model_name_or_path, model_revision)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(why_not_loaded(model_name_or_path, error)) from error


def load_processor(model_name_or_path: str, model_revision: str | None = None) -> MllamaProcessor:
    """Loads the processor on Pillow's image backend, which needs no torchvision."""
    image_processor = MllamaImageProcessorPil.from_pretrained(model_name_or_path, revision=model_revision)
    tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, revision=model_revision)
    # The template stands in a file of its own, which only the whole processor's loader reads.
    template = MllamaProcessor.get_processor_dict(model_name_or_path, revision=model_revision)[0].get("chat_template")
    template = template or tokenizer.chat_template
    if not template:
        raise ValueError("it has no chat template; use an Instruct checkpoint")
    if tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has no padding token")
    return MllamaProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=template)


def _load_model(name: str, revision: str | None, dtype: str) -> MllamaForConditionalGeneration:
    model = MllamaForConditionalGeneration.from_pretrained(
        name, revision=revision, dtype=getattr(torch, dtype), use_safetensors=True
    )
    use_exact_rows(model, getattr(model.config, "reference_attention_mask", False))
    use_fast_vision(model)
    return model


def describe_parameters(args: MllamaSFTConfig) -> str:
    """How many parameters a run would train, counted on the meta device: no weight is loaded.

    A checkpoint that is not at hand is taken for the 11B shape, whose config is transformers' default.
    """
    local = Path(args.model_name_or_path).is_dir()
    config = MllamaConfig.from_pretrained(args.model_name_or_path) if local else MllamaConfig()
    with torch.device("meta"):
        model: Any = MllamaForConditionalGeneration(config)
        if args.use_peft:
            model = get_peft_model(model, lora_config(args))
        elif args.freeze_vision:
            model.model.vision_model.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    shape = "" if local else " (of the 11B shape; the checkpoint was not looked at)"
    return f"{trained:,} of {total:,} parameters would be trained{shape}"


def lora_config(args: MllamaSFTConfig) -> LoraConfig:
    """The adapters that a run's settings ask for."""
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        task_type="CAUSAL_LM",
        revision=args.model_revision,
    )

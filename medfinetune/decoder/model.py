"""Loads a Mllama checkpoint, or a LoRA adapter on top of one."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from medfinetune.decoder.config import CROSS_ATTENTION_LAYERS, MllamaSFTConfig
from medfinetune.decoder.cross_attention import use_exact_rows
from medfinetune.decoder.vision import use_fast_vision
from medfinetune.errors import InputError, require_model_type, why_not_loaded

_OWN_NAMES = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
    "vision_model.": "model.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
"""How names in a published checkpoint begin, and how the module's own begin."""


def load_decoder(
    model_name_or_path: str,
    model_revision: str | None = None,
    dtype: str = "float32",
    quantization: BitsAndBytesConfig | None = None,
) -> tuple[Any, MllamaProcessor]:
    """Loads model and processor, by safetensors only.

    Args:
        model_name_or_path: A folder or a name on the Hub: a whole checkpoint, or a folder with a LoRA adapter, whose
            base model is then loaded too.
        model_revision: The commit, tag or branch on the Hub.
        dtype: `float32`, `bfloat16` or `float16`.
        quantization: What `quantization_config` makes of a run's settings; not for a folder with an adapter, whose
            base model is loaded in `dtype`.

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
            model = _load_model(model_name_or_path, model_revision, dtype, quantization)
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


def _load_model(
    name: str, revision: str | None, dtype: str, quantization: BitsAndBytesConfig | None = None
) -> MllamaForConditionalGeneration:
    how = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    if quantization is not None:
        how["quantization_config"] = quantization
    model = MllamaForConditionalGeneration.from_pretrained(name, revision=revision, **how)
    use_exact_rows(model, getattr(model.config, "reference_attention_mask", False))
    use_fast_vision(model)
    return model


def shape_of(name: str) -> tuple[MllamaConfig, str]:
    """The shape of a local checkpoint, or the 11B shape and a note that says so.

    Raises:
        InputError: The folder holds another kind of model.
    """
    require_model_type(name, "mllama")
    if Path(name).is_dir():
        return MllamaConfig.from_pretrained(name), ""
    # The published tiles are of 560 px, where transformers' default is 448.
    return MllamaConfig(vision_config={"image_size": 560}), "of the 11B shape; the checkpoint was not looked at"


def describe_parameters(args: MllamaSFTConfig) -> str:
    """How many parameters a run would train, counted on the meta device: no weight is loaded."""
    config, note = shape_of(args.model_name_or_path)
    with torch.device("meta"):
        model: Any = MllamaForConditionalGeneration(config)
        if args.use_peft:
            model = get_peft_model(model, lora_config(args))
        else:
            freeze(model, args)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    return f"{trained:,} of {total:,} parameters would be trained{f' ({note})' if note else ''}"


def freeze(model: nn.Module, args: MllamaSFTConfig) -> None:
    """Takes the gradient from what full fine-tuning is to leave as it is."""
    inner = model.model
    if args.train_cross_attention_only:
        model.requires_grad_(False)
        for layer in inner.language_model.layers:
            layer.requires_grad_(isinstance(layer, MllamaCrossAttentionDecoderLayer))
    if args.freeze_vision:
        inner.vision_model.requires_grad_(False)
    if args.freeze_projector:
        inner.multi_modal_projector.requires_grad_(False)


def lora_config(args: MllamaSFTConfig, model: nn.Module | None = None) -> LoraConfig:
    """The adapters that a run's settings ask for.

    Raises:
        InputError: The model has no module that `lora_target_modules` names.
    """
    target = CROSS_ATTENTION_LAYERS if args.train_cross_attention_only else args.lora_target_modules
    if model is not None and not any(re.fullmatch(target, name) for name, _ in model.named_modules()):
        raise InputError(f"lora_target_modules: {target!r} matches no module of the model")
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        use_dora=args.lora_use_dora,
        use_rslora=args.lora_use_rslora,
        target_modules=target,
        task_type="CAUSAL_LM",
        revision=args.model_revision,
    )


def quantization_config(args: MllamaSFTConfig) -> BitsAndBytesConfig | None:
    """How the frozen weights of the text layers are kept; tower, projector and head stay as they are.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if not (args.load_in_4bit or args.load_in_8bit):
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        key = "load_in_4bit" if args.load_in_4bit else "load_in_8bit"
        raise InputError(f"{key}: needs bitsandbytes; install it with: pip install 'medfinetune[quantization]'")
    return BitsAndBytesConfig(
        load_in_4bit=args.load_in_4bit,
        load_in_8bit=args.load_in_8bit,
        bnb_4bit_quant_type=args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=args.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, args.dtype),
        # Under their whole names: a plain `vision_model` matches nothing.
        llm_int8_skip_modules=["lm_head", "model.vision_model", "model.multi_modal_projector"],
    )


def keep_stock_names(model: nn.Module) -> None:
    """Lets checkpoints carry the names of the published one, and be read back under them; may be called again.

    Under ZeRO-3 transformers keeps every renaming that it knows for later saving, not only those that were needed when
    it loaded, and writes `language_model.model.model.layers`. Without its note it takes the published names. And when
    a run is resumed, the Trainer looks for the module's own names in the file, finds none, and goes on with what was
    loaded at the start.
    """
    if is_deepspeed_zero3_enabled():
        model._weight_conversions = None
    if not hasattr(model, "_reads_stock_names"):
        model.register_load_state_dict_pre_hook(_own_names)
        model._reads_stock_names = True


def _own_names(model: nn.Module, state_dict: dict[str, Tensor], *_: Any) -> None:
    for name in list(state_dict):
        for stock, own in _OWN_NAMES.items():
            if name.startswith(stock):
                state_dict[own + name.removeprefix(stock)] = state_dict.pop(name)
                break

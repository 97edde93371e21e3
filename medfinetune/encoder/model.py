"""Loads a SigLIP checkpoint, at the image size that is wanted."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from medfinetune.errors import InputError, why_not_loaded


def load_encoder(
    model_name_or_path: str,
    model_revision: str | None = None,
    image_size_px: int | None = None,
    max_text_length: int | None = None,
) -> tuple[Any, SiglipProcessor]:
    """Loads model (fp32) and processor.

    Args:
        model_name_or_path: A folder or the name of a checkpoint on the Hub: SigLIP, SigLIP 2 of a fixed resolution or
            MedSigLIP; or a folder with a LoRA adapter, whose base model is then loaded too.
        model_revision: The commit, tag or branch on the Hub.
        image_size_px: Where it differs from the checkpoint's, the position grid is interpolated once and for all:
            weights, config and processor then agree, and nobody needs a flag afterwards.
        max_text_length: Tokens of every text; what the checkpoint's tokenizer says where left out.

    Returns:
        A `SiglipModel`, or for an adapter a `PeftModel` around one; and the processor.

    Raises:
        InputError: The checkpoint cannot be read, holds no SigLIP, the size is no multiple of the patch, or there are
            fewer positions than tokens.
    """
    adapter = Path(model_name_or_path) / "adapter_config.json"
    try:
        if adapter.is_file():
            settings = json.loads(adapter.read_text(encoding="utf-8"))
            base, revision = settings["base_model_name_or_path"], settings.get("revision")
        else:
            base, revision = model_name_or_path, model_revision
        _require_siglip(base, revision)
        model: Any = SiglipModel.from_pretrained(base, revision=revision, dtype=torch.float32, use_safetensors=True)
        processor = _load_processor(model_name_or_path, None if adapter.is_file() else revision)
        if adapter.is_file():
            # The adapter was trained at its processor's size.
            resize_positions(model, processor, processor.image_processor.size["width"])
            model = PeftModel.from_pretrained(model, model_name_or_path)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(why_not_loaded(model_name_or_path, error)) from error
    if image_size_px is not None:
        resize_positions(model, processor, image_size_px)
    # Some tokenizers name no length, which reads as one without end.
    own = min(processor.tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    set_text_length(model, processor, own if max_text_length is None else max_text_length)
    return model, processor


def set_text_length(model: Any, processor: Any, max_text_length: int) -> None:
    """Writes the length of every text into the tokenizer, which is saved with the model: collators read it there.

    Raises:
        InputError: The model has fewer positions.
    """
    positions = model.config.text_config.max_position_embeddings
    if not 1 <= max_text_length <= positions:
        raise InputError(f"max_text_length: {max_text_length}: must be 1 to {positions}, the positions the model has")
    processor.tokenizer.model_max_length = max_text_length


def _require_siglip(name: str, revision: str | None) -> None:
    found = SiglipConfig.get_config_dict(name, revision=revision)[0].get("model_type")
    if found is None:
        raise OSError("it has no config.json that names a model type")
    if found == "siglip2":
        raise InputError(
            f"{name}: is a SigLIP 2 with flexible resolution (NaFlex), which is not supported; take one of a fixed "
            "resolution, for example google/siglip2-base-patch16-256"
        )
    if found != "siglip":
        raise InputError(f"{name}: holds a model of type {found}, not siglip")


def _load_processor(name: str, revision: str | None) -> SiglipProcessor:
    image_processor = SiglipImageProcessorPil.from_pretrained(name, revision=revision)
    # SigLIP learned without a mask, and stock pipelines pass on what the tokenizer returns: it is to return none.
    settings = {"revision": revision, "model_input_names": ["input_ids"]}
    tokenizer = AutoTokenizer.from_pretrained(name, **settings)
    if isinstance(tokenizer, GemmaTokenizer):
        # SigLIP 2 learned lower-case text, but its files name a tokenizer that keeps capitals.
        tokenizer = Siglip2Tokenizer.from_pretrained(name, padding_side="right", **settings)
    return SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def resize_positions(model: SiglipModel, processor: Any, image_size_px: int) -> None:
    """Interpolates the position grid (bicubic) in place, so that the model natively takes `image_size_px`.

    Raises:
        InputError: `image_size_px` is neither the model's own nor a positive multiple of the patch size.
    """
    embeddings = model.vision_model.embeddings
    # A checkpoint's own size may leave a rest: 384 px at a patch of 14 make 27 x 27 positions.
    if image_size_px != embeddings.image_size and (image_size_px <= 0 or image_size_px % embeddings.patch_size):
        raise InputError(f"image_size_px: {image_size_px} is no multiple of the patch of {embeddings.patch_size} px")
    old, new = math.isqrt(embeddings.num_positions), image_size_px // embeddings.patch_size
    if new != old:
        grid = embeddings.position_embedding.weight.data.view(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)
        weight = grid.permute(0, 2, 3, 1).flatten(0, 2).to(embeddings.position_embedding.weight.dtype)
        embeddings.position_embedding = torch.nn.Embedding.from_pretrained(weight, freeze=False)
        embeddings.num_patches = embeddings.num_positions = new * new
        embeddings.position_ids = torch.arange(new * new).expand(1, -1)
    embeddings.image_size = image_size_px
    # The tower keeps a config of its own, which is the same object in some versions and a copy in others.
    for config in (model.config.vision_config, model.vision_model.config, embeddings.config):
        config.image_size = image_size_px
    processor.image_processor.size = {"height": image_size_px, "width": image_size_px}

"""Loads a SigLIP checkpoint, at the image size that is wanted."""

import math
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

from medfinetune.errors import InputError, require_model_type, why_not_loaded


def load_encoder(
    model_name_or_path: str, model_revision: str | None = None, image_size_px: int | None = None
) -> tuple[SiglipModel, Any]:
    """Loads model (fp32) and processor.

    Args:
        model_name_or_path: A folder or the name of a checkpoint on the Hub.
        model_revision: The commit, tag or branch on the Hub.
        image_size_px: Where it differs from the checkpoint's, the position grid is interpolated once and for all:
            weights, config and processor then agree, and nobody needs a flag afterwards.

    Raises:
        InputError: The checkpoint cannot be read, holds no SigLIP, or the size is no multiple of the patch.
    """
    require_model_type(model_name_or_path, "siglip")
    try:
        image_processor = SiglipImageProcessorPil.from_pretrained(model_name_or_path, revision=model_revision)
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, revision=model_revision)
        model = SiglipModel.from_pretrained(
            model_name_or_path, revision=model_revision, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(why_not_loaded(model_name_or_path, error)) from error
    processor = SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer)
    if image_size_px is not None:
        resize_positions(model, processor, image_size_px)
    return model, processor


def resize_positions(model: SiglipModel, processor: Any, image_size_px: int) -> None:
    """Interpolates the position grid (bicubic) in place, so that the model natively takes `image_size_px`.

    Raises:
        InputError: `image_size_px` is no positive multiple of the patch size.
    """
    embeddings = model.vision_model.embeddings
    if image_size_px <= 0 or image_size_px % embeddings.patch_size:
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

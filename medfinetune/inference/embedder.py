"""A loaded encoder as the pipeline uses it: a batch at a time, without progress bars."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from medfinetune.encoder.collator import SigLIPCollator


class Embedder:
    """Embeds images and texts into one space, and says how probable it is that they belong together.

    Attributes:
        scale: The encoder's own, already exponentiated.
        bias: The encoder's own, in logits.
    """

    def __init__(self, model: Any, processor: Any):
        """
        Args:
            model: A `SiglipModel`, with or without adapters, on its device.
            processor: Its processor.
        """
        self._model, self._collator = model.eval(), SigLIPCollator(processor)
        self.scale, self.bias = model.logit_scale.exp().item(), model.logit_bias.item()

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """`(B, D)`, unit norm, in fp32 on the CPU."""
        pixels = self._collator.images(images)["pixel_values"].to(self._model.device, self._model.dtype)
        return F.normalize(self._model.get_image_features(pixel_values=pixels).pooler_output.float().cpu(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """`(B, D)`, unit norm, in fp32 on the CPU; what is beyond the encoder's text length is not read."""
        ids = self._collator.texts(texts)["input_ids"].to(self._model.device)
        return F.normalize(self._model.get_text_features(input_ids=ids).pooler_output.float().cpu(), dim=-1)

    def match_probability(self, cosine: float) -> float:
        """That a text of this cosine belongs to the image, as SigLIP was trained to say it."""
        return 1 / (1 + math.exp(min(700.0, -(self.scale * cosine + self.bias))))

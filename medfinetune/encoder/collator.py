"""Pairs to the tensors that SigLIP takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from medfinetune.encoder.labels import COLUMNS, group_ids_of
from medfinetune.encoder.text import normalize_text


class SigLIPCollator:
    """Turns rows with `images` and `text` into `pixel_values` and `input_ids`.

    Every text goes through `normalize_text`: SigLIP's tokenizer strips punctuation, and `<5 mm` would equal `>5 mm`.

    Text is padded to `max_length` and goes without an attention mask, as SigLIP was trained: with the mask, or
    padded to the longest, the same sentence gets another embedding.
    """

    def __init__(self, processor: Any, max_length: int | None = None):
        """
        Args:
            processor: A `SiglipProcessor`; its size, mean and std are used as they are.
            max_length: Tokens of every text; what the tokenizer says where left out, and 64 where it says nothing.
        """
        self._processor = processor
        self._max_length = max_length

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            rows: Each has `images` (a list of PIL images, of which the first is used) and `text`; the other columns
                of `load_pairs`, where they are there, tell which pairs share an image, a label or a patient.

        Returns:
            `pixel_values` of shape `(B, 3, H, W)` in [-1, 1], `input_ids` of shape `(B, max_length)`, and `group_ids`
            of shape `(B, 5)`, see `group_ids_of`.
        """
        inputs = self.images([row["images"][0] for row in rows]) | self.texts([row["text"] for row in rows])
        columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
        return inputs | {"group_ids": group_ids_of(columns, inputs["input_ids"])}

    def images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """`pixel_values` of shape `(B, 3, H, W)`."""
        rgb = [image.convert("RGB") for image in images]
        return {"pixel_values": self._processor.image_processor(images=rgb, return_tensors="pt")["pixel_values"]}

    def resize(self, image: Image.Image) -> np.ndarray:
        """One image at the model's size, before rescaling and normalising: `(H, W, 3)`, uint8."""
        processor = self._processor.image_processor
        inputs = processor(images=image.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="np")
        return inputs["pixel_values"][0].transpose(1, 2, 0).astype(np.uint8)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turns `(B, H, W, 3)` in 0 to 255 into `pixel_values` of shape `(B, 3, H, W)`, as the image processor does."""
        processor = self._processor.image_processor
        mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
        std = torch.tensor(processor.image_std).view(1, 3, 1, 1)
        # Planes first, while a value is one byte; then in place: each new array of this size costs more than the sums.
        planes = pixels.permute(0, 3, 1, 2).contiguous().float()
        return planes.mul_(processor.rescale_factor).sub_(mean).div_(std)

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` of shape `(B, max_length)`."""
        said = self._processor.tokenizer.model_max_length
        encoded = self._processor.tokenizer(
            [normalize_text(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self._max_length or (said if said < VERY_LARGE_INTEGER else 64),
            return_tensors="pt",
        )
        return {"input_ids": encoded["input_ids"]}

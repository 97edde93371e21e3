"""Chats with images to the tensors that Mllama takes, labels and masks aligned."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from medfinetune.decoder.chat_tokens import IGNORED, ChatTokens, EncodedChat, images_of, name_of
from medfinetune.decoder.masks import cross_attention_mask
from medfinetune.errors import InputError

if TYPE_CHECKING:
    import datasets


class MllamaCollator:
    """Turns rows with `images` and `messages`, or `prompt` and `completion`, into one padded batch.

    A chat is tokenised once, as a whole. Labels are -100 on padding, on `<|image|>` (which has no row in `lm_head`)
    and on everything but the assistant's words and their `<|eot_id|>`.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int = 512,
        train_on: Literal["assistant", "all"] = "assistant",
        date_string: str = "26 Jul 2024",
        for_generation: bool = False,
        pad_to_multiple_of: int | None = None,
    ):
        """
        Args:
            processor: A `MllamaProcessor` with a chat template.
            max_length: Tokens that a chat may have. A longer one loses text from the front of the user's turns, then
                from the end of the last answer; never an image token, never the whole answer.
            train_on: Whose words become labels; `all` still leaves out padding and images.
            date_string: The date that the template writes where it writes one.
            for_generation: Ends after the last user turn with the assistant's header, pads on the left, no labels.
            pad_to_multiple_of: Batches are as wide as their longest chat, or wider up to a multiple of this.
        """
        self._multiple = pad_to_multiple_of or 1
        self._processor, self._max_length, self._for_generation = processor, max_length, for_generation
        self._chats = ChatTokens(processor, max_length, train_on, date_string, for_generation)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            rows: Each has `messages` in chat form, or `prompt` and `completion`, each in chat form or a text; and
                `images`, a list of PIL images in the order of their marks, or one `image`.

        Returns:
            `input_ids`, `attention_mask` and (not for generation) `labels` of shape `(B, T)`; where any row has an
            image also `pixel_values` `(B, N, 4, 3, H, W)`, `aspect_ratio_ids` `(B, N)`, `aspect_ratio_mask`
            `(B, N, 4)` and `cross_attention_mask` `(B, T, N, 4)`.

        Raises:
            InputError: A row whose images and marks differ in number, whose chat does not fit, or that the template
                refuses; the row is named by its `id`.
        """
        chats = [self.encode(row) for row in rows]
        longest = max(len(chat.input_ids) for chat in chats)
        length = -(-longest // self._multiple) * self._multiple
        batch = {
            "input_ids": self._pad([chat.input_ids for chat in chats], length, self._processor.tokenizer.pad_token_id),
            "attention_mask": self._pad([[1] * len(chat.input_ids) for chat in chats], length, 0),
        }
        if not self._for_generation:
            batch["labels"] = self._pad([chat.labels for chat in chats], length, IGNORED)
        images = [images_of(row) or [] for row in rows]
        if any(images):
            batch |= self._image_tensors(images)
            batch["cross_attention_mask"] = cross_attention_mask(
                batch["input_ids"], batch["attention_mask"], batch["aspect_ratio_mask"], self._chats.image
            )
        return batch

    def encode(self, row: dict[str, Any]) -> EncodedChat:
        """Tokenises one chat, labels it, and shortens it where it is too long; opens no image."""
        return self._chats.encode(row)

    def describe_cuts(self, rows: datasets.Dataset | Collection[dict[str, Any]]) -> str:
        """How long the chats are, what `max_length` costs, and which have nothing to learn; reads no image.

        Args:
            rows: What the collator takes; a collection of rows comes undecoded.
        """
        lengths, cuts, empty = [], [], []
        for row in tqdm(_without_pixels(rows), desc="measuring chats", unit="chat"):
            chat = self.encode(row)
            lengths.append(len(chat.input_ids) + chat.num_cut)
            cuts.append(chat.num_cut)
            empty += [] if chat.num_words else [name_of(row)]
        too_long = sum(cut > 0 for cut in cuts)
        said = (
            f"chats of {min(lengths)} to {max(lengths)} tokens; {too_long:,} of {len(lengths):,} exceed max_length "
            f"{self._max_length} and lose {sum(cuts):,} tokens"
        )
        if empty:
            named = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
            said += f"\nwarning: {len(empty):,} of them have an empty answer, and only its end to learn: {named}"
        return said

    def require_words(self, rows: datasets.Dataset | Collection[dict[str, Any]]) -> None:
        """Looks for the first chat that has a word to learn; the end of an empty answer is none.

        Args:
            rows: As for `describe_cuts`.

        Raises:
            InputError: There is none.
        """
        if not any(self.encode(row).num_words for row in _without_pixels(rows)):
            raise InputError(
                f"none of the {len(rows):,} training chats has a word to learn; are the assistant's turns empty?"
            )

    def _pad(self, rows: list[list[int]], length: int, value: int) -> Tensor:
        padding = [[value] * (length - len(row)) for row in rows]
        if self._for_generation:
            return torch.tensor([pad + row for pad, row in zip(padding, rows, strict=True)])
        return torch.tensor([row + pad for pad, row in zip(padding, rows, strict=True)])

    def _image_tensors(self, images: list[list[Any]]) -> dict[str, Tensor]:
        """Rows without an image get empty slots: zeros, aspect ratio id 0, and the one open tile the model needs."""
        with_images = [i for i, row in enumerate(images) if row]
        rgb = [[image.convert("RGB") for image in images[i]] for i in with_images]
        made = self._processor.image_processor(images=rgb, return_tensors="pt")
        tensors = {}
        for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
            tensors[name] = made[name].new_zeros((len(images), *made[name].shape[1:]))
            tensors[name][with_images] = made[name]
        tensors["aspect_ratio_mask"][..., 0] = 1
        return tensors


class MllamaPreferenceCollator:
    """Turns rows with `prompt`, `chosen`, `rejected` and images into batches for `trl.DPOTrainer`.

    TRL's own leaves the cross-attention mask at the prompt's width, on which Mllama fails.
    """

    def __init__(self, processor: Any, max_length: int = 512, date_string: str = "26 Jul 2024"):
        """Arguments are those of `MllamaCollator`."""
        self._collator = MllamaCollator(processor, max_length, date_string=date_string)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            rows: As for `MllamaCollator`, with `chosen` and `rejected` in the place of `completion`.

        Returns:
            As `MllamaCollator`, of twice as many rows, the chosen ones first; `completion_mask` `(2B, T)`, 1 where the
            answer stands, in the place of `labels`.
        """
        batch = self._collator([row | {"completion": row[key]} for key in ("chosen", "rejected") for row in rows])
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
        return batch


def _without_pixels(rows: Any) -> Any:
    if not hasattr(rows, "select_columns"):
        return rows
    wanted = ("id", "messages", "prompt", "completion", "images", "image")
    return undecoded(rows.select_columns([name for name in rows.column_names if name in wanted]))


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with their images as paths or bytes."""
    import datasets  # only here: the collator itself needs torch alone

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows

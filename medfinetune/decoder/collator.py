"""Chats with images to the tensors that Mllama takes, labels and masks aligned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from medfinetune.errors import InputError

IGNORED = -100


@dataclass
class EncodedChat:
    """One chat as token ids.

    Attributes:
        input_ids: At most `max_length` of them.
        labels: The same length; -100 where nothing is to be learned.
        num_cut: Tokens that `max_length` cost.
    """

    input_ids: list[int]
    labels: list[int]
    num_cut: int


class MllamaCollator:
    """Turns rows with `images` and `messages` into one padded batch.

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
    ):
        """
        Args:
            processor: A `MllamaProcessor` with a chat template.
            max_length: Tokens that a chat may have. A longer one loses text from the front of the user's turns, then
                from the end of the last answer; never an image token, never the whole answer.
            train_on: Whose words become labels; `all` still leaves out padding and images.
            date_string: The date that the template writes where it writes one.
            for_generation: Ends after the last user turn with the assistant's header, pads on the left, no labels.
        """
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._max_length = max_length
        self._train_on = train_on
        self._date_string = date_string
        self._for_generation = for_generation
        tokens = ("<|image|>", "<|eot_id|>", "<|end_header_id|>")
        self._image, self._end_of_turn, self._end_of_header = self._tokenizer.convert_tokens_to_ids(list(tokens))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            rows: Each has `messages` in chat form, and `images`, a list of PIL images in the order of their marks.

        Returns:
            `input_ids`, `attention_mask` and (not for generation) `labels` of shape `(B, T)`; where any row has an
            image also `pixel_values` `(B, N, 4, 3, H, W)`, `aspect_ratio_ids` `(B, N)`, `aspect_ratio_mask`
            `(B, N, 4)` and `cross_attention_mask` `(B, T, N, 4)`.

        Raises:
            InputError: A row whose images and marks differ in number, whose chat does not fit, or that the template
                refuses; the row is named by its `id`.
        """
        chats = [self.encode(row) for row in rows]
        length = max(len(chat.input_ids) for chat in chats)
        batch = {
            "input_ids": self._pad([chat.input_ids for chat in chats], length, self._tokenizer.pad_token_id),
            "attention_mask": self._pad([[1] * len(chat.input_ids) for chat in chats], length, 0),
        }
        if not self._for_generation:
            batch["labels"] = self._pad([chat.labels for chat in chats], length, IGNORED)
        images = [list(row.get("images") or []) for row in rows]
        if any(images):
            batch |= self._image_tensors(images)
            batch["cross_attention_mask"] = cross_attention_mask(
                batch["input_ids"], batch["attention_mask"], batch["aspect_ratio_mask"], self._image
            )
        return batch

    def encode(self, row: dict[str, Any]) -> EncodedChat:
        """Tokenises one chat, labels it, and shortens it where it is too long; opens no image."""
        messages = [_with_parts(message) for message in row["messages"]]
        if self._for_generation:
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
        self._check(row, messages)
        ids = self._ids(messages, self._for_generation, row)
        learned, cuttable = [self._train_on == "all"] * len(ids), [False] * len(ids)
        last_answer: range | None = None
        for i, message in enumerate(messages):
            end = len(self._prefix(messages[: i + 1], False, ids, row))
            if message["role"] == "assistant":
                start = len(self._prefix(messages[:i], True, ids, row))
                learned[start:end] = [True] * (end - start)
                last_answer = range(start, end)
            elif message["role"] == "user":
                start = len(self._prefix(messages[:i], False, ids, row)) if i else 0
                for position in self._words(ids, start, end):
                    cuttable[position] = True
        keep = self._shorten(ids, cuttable, last_answer, row)
        labels = [t if flag and t != self._image else IGNORED for t, flag in zip(ids, learned, strict=True)]
        return EncodedChat([ids[i] for i in keep], [labels[i] for i in keep], len(ids) - len(keep))

    def describe_cuts(self, rows: Any) -> str:
        """How long the chats are and what `max_length` costs; reads no image.

        Args:
            rows: A `datasets.Dataset` with `id` and `messages`.
        """
        plain = rows.select_columns(["id", "messages"])
        lengths, cuts = [], []
        for row in tqdm(plain, desc="measuring chats", unit="chat"):
            chat = self.encode(row)
            lengths.append(len(chat.input_ids) + chat.num_cut)
            cuts.append(chat.num_cut)
        too_long = sum(cut > 0 for cut in cuts)
        return (
            f"chats of {min(lengths)} to {max(lengths)} tokens; {too_long:,} of {len(lengths):,} exceed max_length "
            f"{self._max_length} and lose {sum(cuts):,} tokens"
        )

    def _check(self, row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        marks = sum(part["type"] == "image" for message in messages for part in message["content"])
        images = row.get("images")
        if images is not None and marks != len(images):
            raise InputError(f"chat {_name(row)}: {len(images)} images, but its messages mark {marks}")
        answers = [message for message in messages if message["role"] == "assistant"]
        if not self._for_generation and not answers:
            raise InputError(f"chat {_name(row)}: has no assistant turn to learn from")

    def _ids(self, messages: list[dict[str, Any]], open_answer: bool, row: dict[str, Any]) -> list[int]:
        try:
            text = self._processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=open_answer, date_string=self._date_string
            )
        except Exception as error:  # templates raise errors of their own
            raise InputError(f"chat {_name(row)}: the chat template refuses it: {error}") from error
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _prefix(
        self, messages: list[dict[str, Any]], open_answer: bool, ids: list[int], row: dict[str, Any]
    ) -> list[int]:
        """Ids of the chat's beginning; they must begin the whole chat's ids too, or labels would stand askew."""
        if not messages:
            return []
        prefix = self._ids(messages, open_answer, row)
        if ids[: len(prefix)] != prefix:
            raise InputError(
                f"chat {_name(row)}: its beginning is tokenised otherwise alone than in the whole; this tokenizer or "
                "chat template cannot be trained with exact labels"
            )
        return prefix

    def _words(self, ids: list[int], start: int, end: int) -> list[int]:
        """Positions of a turn's own words: after its header, without image marks and end of turn."""
        header = ids.index(self._end_of_header, start, end)
        words = [i for i in range(header + 1, end) if ids[i] not in (self._image, self._end_of_turn)]
        while words and words[0] <= header + 2 and not self._tokenizer.decode([ids[words[0]]]).strip():
            words.pop(0)  # the line break that belongs to the header
        return words

    def _shorten(self, ids: list[int], cuttable: list[bool], answer: range | None, row: dict[str, Any]) -> list[int]:
        excess = len(ids) - self._max_length
        keep = list(range(len(ids)))
        if excess <= 0:
            return keep
        cut = set([i for i in keep if cuttable[i]][:excess])
        if answer is not None:
            # At least one word of the answer stays; its end of turn goes with what is cut, for it did not end there.
            rest = excess - len(cut)
            cut |= set(answer[max(1, len(answer) - rest) :]) if rest else set()
        if len(ids) - len(cut) > self._max_length:
            raise InputError(
                f"chat {_name(row)}: {len(ids)} tokens, of which only {len(cut)} can be cut, do not fit "
                f"max_length {self._max_length}"
            )
        return [i for i in keep if i not in cut]

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


def cross_attention_mask(
    input_ids: Tensor, attention_mask: Tensor, aspect_ratio_mask: Tensor, image_token: int
) -> Tensor:
    """Which token sees which tile: each image from its mark to the next image's, or to the end.

    Images that follow each other directly are seen together. Built from the final, padded ids, so that it always has
    their width.

    Args:
        input_ids: `(B, T)`.
        attention_mask: `(B, T)`, 0 on padding.
        aspect_ratio_mask: `(B, N, 4)`, 1 on tiles that exist.
        image_token: Id of `<|image|>`.

    Returns:
        `(B, T, N, 4)`, 1 where a token sees a tile.
    """
    batch, length = input_ids.shape
    mask = torch.zeros(batch, length, *aspect_ratio_mask.shape[1:], dtype=torch.long)
    for row in range(batch):
        marks = (input_ids[row] == image_token).nonzero().flatten().tolist()
        end = length
        for image in reversed(range(len(marks))):
            if image + 1 < len(marks) and marks[image + 1] != marks[image] + 1:
                end = marks[image + 1]
            mask[row, marks[image] : end, image] = aspect_ratio_mask[row, image]
    return mask * attention_mask[:, :, None, None]


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of parts without the empty fields that parquet and JSON tables add."""
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts = [
        {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part.get("text") or ""}
        for part in content
    ]
    return {"role": message["role"], "content": parts}


def _name(row: dict[str, Any]) -> str:
    return str(row.get("id", "without id"))

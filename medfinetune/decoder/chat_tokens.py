"""Chats to token ids and labels, in one piece; no image is opened here."""

from dataclasses import dataclass
from typing import Any, Literal

from medfinetune.errors import InputError

IGNORED = -100
_IMAGE = "<|image|>"
_ASKEW = (
    "the beginning of an answer is tokenised otherwise alone than in the whole; this tokenizer or chat template cannot "
    "be trained with exact labels"
)


@dataclass
class EncodedChat:
    """One chat as token ids.

    Attributes:
        input_ids: At most `max_length` of them.
        labels: The same length; -100 where nothing is to be learned.
        num_cut: Tokens that `max_length` cost.
        num_words: Labels that are part of a text; an empty answer has its end of turn alone.
    """

    input_ids: list[int]
    labels: list[int]
    num_cut: int
    num_words: int


def turns_of(row: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The turns of a row, with their content as parts, and how many of them are its `prompt`.

    A row has `messages`, or `prompt` and `completion`: each a text, which is a turn of the user or of the assistant,
    or a list of turns. `<|image|>` in a text marks an image. Where nothing marks one and the user's first turn is a
    plain text, all images come before it, as in TRL.

    Args:
        row: A row of a dataset; `images` is only counted.

    Returns:
        The turns, and the number of those that stand in `prompt` (0 for `messages`).

    Raises:
        InputError: The row has neither form, or a turn without role or content.
    """
    if row.get("messages") is not None:
        turns, num_prompt = row["messages"], 0
    elif row.get("prompt") is not None:
        turns = _as_turns(row["prompt"], "user")
        num_prompt = len(turns)
        turns = turns + _as_turns(row.get("completion") or [], "assistant")
    else:
        raise InputError(f"chat {name_of(row)}: has neither messages nor prompt and completion")
    parted = [_with_parts(turn, row) for turn in turns]
    if not any(part["type"] == "image" for turn in parted for part in turn["content"]):
        first = next((i for i, turn in enumerate(parted) if turn["role"] == "user"), None)
        if first is not None and isinstance(turns[first]["content"], str):
            marks = [{"type": "image"} for _ in images_of(row) or []]
            parted[first]["content"] = marks + parted[first]["content"]
    return parted, num_prompt


def answer_of(row: dict[str, Any]) -> str:
    """The assistant's words that generation is held against: after the prompt, or the last turn of `messages`.

    Raises:
        InputError: There are none.
    """
    turns, num_prompt = turns_of(row)
    answer = turns[num_prompt : num_prompt + 1] if num_prompt else turns[-1:]
    if not answer or answer[0]["role"] != "assistant":
        raise InputError(f"chat {name_of(row)}: does not end with the assistant's turn")
    return _text_of(answer[0], " ")


def images_of(row: dict[str, Any]) -> list[Any] | None:
    """The row's images, from `images` or TRL's `image`; None where it has no such column."""
    if row.get("images") is not None:
        return list(row["images"])
    return None if row.get("image") is None else [row["image"]]


def name_of(row: dict[str, Any]) -> str:
    """What errors call the row."""
    return str(row.get("id", "without id"))


class ChatTokens:
    """Tokenises each chat once, as a whole, and labels it.

    Labels are -100 on `<|image|>` (which has no row in `lm_head`) and on everything but the assistant's words and
    their `<|eot_id|>`; of a prompt and its completion, only the completion's are learned.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int,
        train_on: Literal["assistant", "all"],
        date_string: str,
        for_generation: bool,
    ):
        """Arguments are those of `MllamaCollator`."""
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._max_length = max_length
        self._train_on = train_on
        self._date_string = date_string
        self._for_generation = for_generation
        tokens = [_IMAGE, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
        self.image, self._end_of_turn, *ends = self._tokenizer.convert_tokens_to_ids(tokens)
        self._start_of_header, self._end_of_header = ends
        special = {i: token.content for i, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._special, self._special_ids = list(special.values()), set(special)

    def encode(self, row: dict[str, Any]) -> EncodedChat:
        """Tokenises one chat, labels it, and shortens it where it is too long; opens no image."""
        messages, num_prompt = turns_of(row)
        if self._for_generation:
            del messages[num_prompt or len(messages) :]
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
        self._check(row, messages, num_prompt)
        ids = self._ids(messages, False, row)
        opening = self._opening(messages, ids, row)
        starts = self._starts(messages, ids, row)
        ends = [*starts[1:], len(ids)]
        ids += opening if self._for_generation else []
        learned, cuttable = [self._train_on == "all"] * len(ids), [False] * len(ids)
        last_answer: range | None = None
        for i, (message, start, end) in enumerate(zip(messages, starts, ends, strict=True)):
            if message["role"] == "assistant" and i >= num_prompt:
                if ids[start : start + len(opening)] != opening:
                    raise InputError(f"chat {name_of(row)}: {_ASKEW}")
                last_answer = range(start + len(opening), end)
                learned[last_answer.start : end] = [True] * len(last_answer)
            elif message["role"] == "user":
                for position in self._words(ids, start, end):
                    cuttable[position] = True
        keep = self._shorten(ids, cuttable, last_answer, row)
        labels = [t if flag and t != self.image else IGNORED for t, flag in zip(ids, learned, strict=True)]
        num_words = sum(labels[i] != IGNORED and labels[i] not in self._special_ids for i in keep)
        return EncodedChat([ids[i] for i in keep], [labels[i] for i in keep], len(ids) - len(keep), num_words)

    def _check(self, row: dict[str, Any], messages: list[dict[str, Any]], num_prompt: int) -> None:
        parts = [part for message in messages for part in message["content"]]
        marks = sum(part["type"] == "image" for part in parts)
        images = images_of(row)
        if images is not None and marks != len(images):
            raise InputError(f"chat {name_of(row)}: {len(images)} images, but its messages mark {marks}")
        for text in (part["text"] for part in parts if part["type"] == "text" and "<|" in part["text"]):
            wrong = next((token for token in self._special if token in text), None)
            if wrong is not None:
                raise InputError(
                    f"chat {name_of(row)}: its text holds {wrong}, which would be taken for the chat's own; give the "
                    "turns without the chat template"
                )
        if any(part["type"] == "image" for m in messages if m["role"] == "system" for part in m["content"]):
            raise InputError(f"chat {name_of(row)}: its system turn marks an image; mark it in a turn of the user")
        if not self._for_generation and not any(m["role"] == "assistant" for m in messages[num_prompt:]):
            raise InputError(f"chat {name_of(row)}: has no assistant turn to learn from")

    def _ids(self, messages: list[dict[str, Any]], open_answer: bool, row: dict[str, Any]) -> list[int]:
        # Llama's template writes a system turn as it gets it, and would print a list of parts.
        said = [m | {"content": _text_of(m)} if m["role"] == "system" else m for m in messages]
        try:
            text = self._processor.apply_chat_template(
                said, tokenize=False, add_generation_prompt=open_answer, date_string=self._date_string
            )
        except Exception as error:  # templates raise errors of their own
            raise InputError(f"chat {name_of(row)}: the chat template refuses it: {error}") from error
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _opening(self, messages: list[dict[str, Any]], ids: list[int], row: dict[str, Any]) -> list[int]:
        """What generation gives after a chat for the assistant to go on from; every answer must begin behind it."""
        opened = self._ids(messages, True, row)
        if opened[: len(ids)] != ids:
            raise InputError(f"chat {name_of(row)}: {_ASKEW}")
        return opened[len(ids) :]

    def _starts(self, messages: list[dict[str, Any]], ids: list[int], row: dict[str, Any]) -> list[int]:
        """Where each turn's header begins.

        They are read from the whole chat: the first turns alone may look otherwise, for the template writes a system
        turn of its own where it sees no image.
        """
        starts = [i for i, token in enumerate(ids) if token == self._start_of_header]
        num_own = len(starts) - len(messages)
        if num_own not in ((0,) if not messages or messages[0]["role"] == "system" else (0, 1)):
            raise InputError(
                f"chat {name_of(row)}: its {len(messages)} turns come out of the chat template as {len(starts)}; it "
                "cannot be trained with exact labels"
            )
        return starts[num_own:]

    def _words(self, ids: list[int], start: int, end: int) -> list[int]:
        """Positions of a turn's own words: after its header, without image marks and end of turn."""
        header = ids.index(self._end_of_header, start, end)
        words = [i for i in range(header + 1, end) if ids[i] not in (self.image, self._end_of_turn)]
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
                f"chat {name_of(row)}: {len(ids)} tokens, of which only {len(cut)} can be cut, do not fit "
                f"max_length {self._max_length}"
            )
        return [i for i in keep if i not in cut]


def _text_of(turn: dict[str, Any], between: str = "") -> str:
    return between.join(part["text"] for part in turn["content"] if part["type"] == "text")


def _as_turns(value: Any, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _with_parts(turn: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A turn whose content is a list of parts, without space around it and the empty fields that tables add."""
    content = turn.get("content")
    if not isinstance(turn.get("role"), str) or not isinstance(content, str | list):
        raise InputError(f"chat {name_of(row)}: each turn needs a role and content")
    parts = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "image":
            parts.append({"type": "image"})
            continue
        first, *others = (part.get("text") or "").split(_IMAGE)
        parts += [{"type": "text", "text": first}] if first or not others else []
        for text in others:
            parts += [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
    # A line break there would melt into that of the header, and an answer begin elsewhere than after a prompt.
    for part, strip in ((parts[0], str.lstrip), (parts[-1], str.rstrip)) if parts else ():
        if part["type"] == "text":
            part["text"] = strip(part["text"])
    return {"role": turn["role"], "content": parts}

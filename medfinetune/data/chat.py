"""Pairs as chats: what the decoder is trained on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from medfinetune.errors import InputError

PAIRS_FILE = "all_med_pairs.parquet"
CHATS_FILE = "chat_instructions.jsonl"

PROMPTS = {
    "caption": {
        "en": "Describe what this medical image shows.",
        "zh": "请描述这张医学图像。",
    },
    "report": {
        "en": "Write the report of this medical image.",
        "zh": "请为这张医学图像撰写报告。",
    },
}
"""What the user asks, by task and language; a question asks itself."""


@dataclass
class ChatConfig:
    """The keys of `recipes/chats.py`."""

    data_dir: str = field(metadata={"help": f"the folder that holds {PAIRS_FILE}; {CHATS_FILE} is written beside it"})


def chat(row: dict[str, Any]) -> dict[str, Any]:
    """Turns a row of the parquet into a chat: the images come first in the user's turn, then the text.

    A row that came as a chat keeps its own turns.

    Returns:
        `id`, `images` (as in the row), `messages` in the form that processors' chat templates take, `split`,
        `language`, `source` and `task`.
    """
    given = json.loads(row.get("metadata") or "{}").get("messages")
    question = row["task"] == "question"
    prompts = PROMPTS["report" if question else row["task"]]
    prompt = row["question"] if question else prompts.get(row["language"], prompts["en"])
    answer = row["answer"] if question else row["text"]
    content = [{"type": "image"} for _ in row["images"]]
    made = [
        {"role": "user", "content": [*content, {"type": "text", "text": prompt}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return {
        "id": row["id"],
        "images": row["images"],
        "messages": given or made,
        "split": row["split"],
        "language": row["language"],
        "source": row["source"],
        "task": row["task"],
    }


def chat_messages(messages: Any, num_images: int) -> list[dict[str, Any]]:
    """Checks a chat in the form that TRL takes, and puts image parts first in the user's first turn if it has none.

    Args:
        messages: Turns with `role` and `content`; content is text, or a list of parts of type `text` or `image`.
        num_images: Images that belong to the chat.

    Returns:
        The turns as given, with text content written as parts.

    Raises:
        ValueError: No chat, no turn of user or assistant, or another number of images than belong to it.
    """
    if isinstance(messages, str):
        messages = json.loads(messages)
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise ValueError("must be a list of turns")
    turns = []
    for number, turn in enumerate(messages, start=1):
        content = turn.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if turn.get("role") not in ("system", "user", "assistant") or not isinstance(parts, list):
            raise ValueError(f"turn {number} needs a role (system, user, assistant) and content")
        if not all(isinstance(part, dict) and part.get("type") in ("text", "image") for part in parts):
            raise ValueError(f"turn {number}: parts must be of type text or image")
        # A table fills the keys that a part does not have with nothing.
        parts = [{key: value for key, value in part.items() if value is not None} for part in parts]
        turns.append({"role": turn["role"], "content": parts})
    if not words_of(turns, "assistant") or not any(turn["role"] == "user" for turn in turns):
        raise ValueError("needs a turn of the user and words of the assistant")
    num_parts = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    if num_parts == 0:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = [*({"type": "image"} for _ in range(num_images)), *first["content"]]
    elif num_parts != num_images:
        raise ValueError(f"has places for {num_parts} images, but {num_images} belong to it")
    return turns


def words_of(messages: list[dict[str, Any]], role: str) -> str:
    """Everything that one role says, a line for each part."""
    parts = [part for turn in messages if turn["role"] == role for part in turn["content"]]
    return "\n".join(part.get("text") or "" for part in parts if part["type"] == "text").strip()


def write_chats(pairs_file: Path, chats_file: Path) -> int:
    """Writes a chat for each row of the parquet, one JSON object a line.

    Returns:
        The number of chats.

    Raises:
        InputError: The parquet is missing, damaged, or lacks a column.
    """
    unfinished = chats_file.with_name(chats_file.name + ".tmp")
    num_chats = 0
    with unfinished.open("w", encoding="utf-8") as file:
        for row in _rows(pairs_file):
            file.write(json.dumps(chat(row), ensure_ascii=False) + "\n")
            num_chats += 1
    unfinished.replace(chats_file)
    return num_chats


def _rows(pairs_file: Path) -> Iterator[dict[str, Any]]:
    columns = ["id", "images", "text", "language", "source", "task", "question", "answer", "split", "metadata"]
    try:
        with pq.ParquetFile(pairs_file) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise InputError(f"{pairs_file}: column {column} is missing")
            for batch in file.iter_batches(batch_size=1000, columns=columns):
                yield from batch.to_pylist()
    except FileNotFoundError as error:
        raise InputError(f"{pairs_file}: no such file; recipes/prepare.py makes it") from error
    except (OSError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{pairs_file}: is no parquet: {error}") from error

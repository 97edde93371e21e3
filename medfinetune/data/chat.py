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

    Returns:
        `id`, `images` (as in the row), `messages` in the form that processors' chat templates take, `split`,
        `language`, `source` and `task`.
    """
    question = row["task"] == "question"
    prompts = PROMPTS["report" if question else row["task"]]
    prompt = row["question"] if question else prompts.get(row["language"], prompts["en"])
    answer = row["answer"] if question else row["text"]
    content = [{"type": "image"} for _ in row["images"]]
    return {
        "id": row["id"],
        "images": row["images"],
        "messages": [
            {"role": "user", "content": [*content, {"type": "text", "text": prompt}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "split": row["split"],
        "language": row["language"],
        "source": row["source"],
        "task": row["task"],
    }


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
    columns = ["id", "images", "text", "language", "source", "task", "question", "answer", "split"]
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

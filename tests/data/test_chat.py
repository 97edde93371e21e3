import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfinetune.data.chat import PROMPTS, chat, chat_messages, write_chats
from medfinetune.data.schema import FEATURES
from medfinetune.errors import InputError

ROW = dict.fromkeys(FEATURES) | {
    "id": "a",
    "images": ["images/aa/1.png", "images/bb/2.png"],
    "pixel_sha256": ["1", "2"],
    "text": "No fracture.",
    "language": "en",
    "source": "reports",
    "task": "report",
    "split": "train",
}


@pytest.mark.parametrize("task", ["caption", "report"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_images_come_first_then_the_prompt(task, language):
    result = chat(ROW | {"task": task, "language": language})
    assert result["messages"] == [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": PROMPTS[task][language]}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "No fracture."}]},
    ]
    assert (result["id"], result["images"], result["split"]) == ("a", ROW["images"], "train")


def test_a_question_asks_itself():
    row = ROW | {"task": "question", "question": "有骨折吗?", "answer": "没有", "text": "有骨折吗? 没有"}
    user, assistant = chat(row)["messages"]
    assert user["content"][-1]["text"] == "有骨折吗?"
    assert assistant["content"][0]["text"] == "没有"


def test_the_parquet_alone_is_enough(tmp_path):
    rows = [ROW, ROW | {"id": "b", "text": "未见骨折。", "language": "zh"}]
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), tmp_path / "pairs.parquet")
    assert write_chats(tmp_path / "pairs.parquet", tmp_path / "chats.jsonl") == 2
    lines = (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [chat(row) for row in rows]
    assert "未见骨折" in lines[1]


def test_wrong_parquet_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        write_chats(tmp_path / "none.parquet", tmp_path / "chats.jsonl")
    (tmp_path / "text.parquet").write_text("x")
    with pytest.raises(InputError, match=r"text\.parquet: is no parquet"):
        write_chats(tmp_path / "text.parquet", tmp_path / "chats.jsonl")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "less.parquet")
    with pytest.raises(InputError, match=r"less\.parquet: column images is missing"):
        write_chats(tmp_path / "less.parquet", tmp_path / "chats.jsonl")
    assert not (tmp_path / "chats.jsonl").exists()


def test_a_given_chat_keeps_its_turns():
    turns = chat_messages([{"role": "user", "content": "Side?"}, {"role": "assistant", "content": "Left."}], 2)
    row = ROW | {"metadata": json.dumps({"messages": turns})}
    assert chat(row)["messages"] == turns
    assert [part["type"] for part in turns[0]["content"]] == ["image", "image", "text"]
    # The empty keys that a parquet table adds to a part go.
    part = {"type": "image", "text": None}
    turns[0]["content"][0] = part
    assert chat_messages(turns, 2)[0]["content"][0] == {"type": "image"}
    assert chat_messages(json.dumps(turns), 2) == chat_messages(turns, 2)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ({}, "a list of turns"),
        (["x"], "a list of turns"),
        ([{"role": "bot", "content": "x"}], "turn 1 needs a role"),
        ([{"role": "user", "content": 3}], "turn 1 needs a role"),
        ([{"role": "user", "content": [{"type": "video"}]}], "parts must be of type"),
        ([{"role": "assistant", "content": "x"}], "a turn of the user"),
    ],
)
def test_what_is_no_chat_is_said(messages, message):
    with pytest.raises(ValueError, match=message):
        chat_messages(messages, 1)

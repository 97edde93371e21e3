"""Chats that teach reading: what is answered stands in the prompt, and nothing else does."""

import itertools
import json

import pytest

from medfinetune.data.audit import audit
from medfinetune.data.load import load_chats, load_pairs
from medfinetune.data.phantom.findings import ATTRIBUTES, sentences, statement
from medfinetune.data.phantom.reading import write_reading_chats
from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config

HEADS = {"en": ("Reports of similar images:\n", "Findings that are"), "zh": ("相似图像的报告：\n", "根据图像")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reading") / "data"
    write_reading_chats(path, 240, seed=3)
    return path


def stated(text, language):
    """(attribute, value) of every sentence of a report, read by the wordings it can be written in."""
    found = set()
    for attribute, values in ATTRIBUTES.items():
        other = {"lesion_colour": "lesion_border", "lesion_border": "lesion_colour"}.get(attribute, attribute)
        for value, companion in itertools.product(values, ATTRIBUTES[other]):
            findings = {other: companion} | {attribute: value}
            if any(wording in text for wording in sentences(attribute, findings, language)):
                found.add((attribute, value))
    return found


def test_the_answer_says_what_the_prompt_says(folder):
    rows = [row for split in load_chats(folder).values() for row in split]
    assert len(rows) == 240
    kinds = {"reports": 0, "labels": 0, "both": 0}
    for row in rows:
        user, assistant = (turn["content"][-1]["text"] for turn in row["messages"])
        reports, labels = HEADS[row["language"]]
        kinds["both" if reports in user and labels in user else "reports" if reports in user else "labels"] += 1
        findings = stated(assistant, row["language"])
        assert len({attribute for attribute, _ in findings}) == len(findings) > 0
        if reports in user:
            assert f"{reports}1. {assistant}\n" in user
        if labels in user:
            told = user[user.index(labels) :]
            for attribute, values in ATTRIBUTES.items():
                said = {value for value in values if f"{statement(attribute, value, row['language'])} (" in told}
                assert {(attribute, value) for value in said} == {pair for pair in findings if pair[0] == attribute}
    assert kinds == {"reports": 80, "labels": 80, "both": 80}
    assert {row["language"] for row in rows} == {"en", "zh"}


def test_it_is_a_data_folder_without_images(folder, tiny_mllama, tmp_path):
    assert audit(folder)["rows"] == 240
    assert load_pairs(folder)["train"][0]["images"] == []
    chats = load_chats(folder)
    assert 0 < len(chats["validation"]) < 40
    assert chats["train"][0]["images"] == []
    model, processor = load_decoder(str(tiny_mllama))
    args = config(tmp_path, max_length=420)
    trainer = MllamaSFTTrainer(model, args, chats["train"].select(range(40)), None, processor)
    assert "0 of 40 exceed" in trainer.describe_cuts()
    trainer.train()
    assert "pixel_values" not in MllamaCollator(processor)([chats["train"][0]])


def test_seed_decides(folder, tmp_path):
    again, other = (write_reading_chats(tmp_path / str(seed), 240, seed=seed).read_text() for seed in (3, 4))
    first = (folder / "chat_instructions.jsonl").read_text()
    assert again == first
    assert other != first
    assert len({json.loads(line)["messages"][1]["content"][0]["text"] for line in first.splitlines()}) > 200


def test_bad_arguments(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        write_reading_chats(tmp_path / "file")
    with pytest.raises(InputError, match="num_chats: must be at least 1"):
        write_reading_chats(tmp_path, 0)

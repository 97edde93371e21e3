import json

import pytest

from medfinetune.data import wording
from medfinetune.data.wording import find_confused, load_tokenizer, measure_chats, measure_texts
from medfinetune.errors import InputError
from tests.data.test_report import enter


class Words:
    """A tokenizer of words, which knows signs as SigLIP's does not."""

    chat_template = None

    def __call__(self, text, **_):
        return type("Encoded", (), {"input_ids": [hash(word) for word in text.split()]})

    def decode(self, ids, **_):
        return f"{len(ids)} words"


def texts(*said: str):
    return enter(*({"text": text} for text in said))


def test_signs_that_siglip_strips_are_found():
    ledger = texts("Nodule <5 mm.", "nodule >5 mm", "1.5 cm", "15 cm", "No fracture.", "no fracture", "15 CM!", "other")
    found = find_confused(ledger)
    groups = [["1.5 cm", "15 CM!"], ["Nodule <5 mm.", "nodule >5 mm"]]
    assert found == {"num_groups": 2, "num_still_confused": 0, "groups": groups}


def test_what_rewriting_does_not_tell_apart_is_counted(monkeypatch):
    monkeypatch.setattr(wording, "normalize_text", lambda text: text)
    assert find_confused(texts("<5 mm", ">5 mm"))["num_still_confused"] == 1


def test_the_length_is_that_of_the_text_the_encoder_sees():
    assert measure_texts(texts("<5 mm"), Words(), 2)["lengths"] == {"4": 1}


def test_a_given_tokenizer_decides():
    assert find_confused(texts("<5 mm", ">5 mm"), Words())["num_groups"] == 0


def test_what_will_be_cut_is_shown():
    measured = measure_texts(texts("a b c", "a b", "d e f g h", "a b"), Words(), 2)
    assert (measured["num_texts"], measured["num_cut"]) == (3, 2)
    assert measured["lengths"] == {"2": 1, "3": 1, "5": 1}
    assert measured["cut"] == [
        {"where": "row 3", "tokens": 5, "lost": "3 words"},
        {"where": "row 1", "tokens": 3, "lost": "1 words"},
    ]


def test_a_chat_counts_question_and_answer():
    question = {"task": "question", "question": "is it there", "answer": "no", "text": "is it there no"}
    measured = measure_chats(enter(question), Words(), 512)
    assert measured["lengths"] == {"4": 1}
    turns = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "three"}]})
    assert measure_chats(enter({"metadata": {"messages": turns}}), Words(), 512)["lengths"] == {"3": 1}


def test_a_template_is_used_with_a_fixed_date():
    class Templated(Words):
        chat_template = "x"

        def apply_chat_template(self, messages, tokenize, date_string):
            assert not tokenize
            return f"date {date_string} {json.dumps(messages)}"

    assert measure_chats(enter({}), Templated(), 512)["num_texts"] == 1


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"encoder_tokenizer: .*none"):
        load_tokenizer(str(tmp_path / "none"), "encoder_tokenizer")
    assert wording.load_tokenizer is load_tokenizer


def test_the_real_tokenizers_agree(tiny_siglip, tiny_mllama):
    ledger = texts("Nodule <5 mm.", "nodule >5 mm", "No fracture.", "no fracture", "左肺<5毫米。", "左肺>5毫米。")
    siglip = load_tokenizer(str(tiny_siglip), "encoder_tokenizer")
    assert find_confused(ledger, siglip) == find_confused(ledger)
    assert find_confused(ledger)["num_groups"] == 2
    long = texts("No fracture. " * 100, "No fracture.")
    measured = measure_texts(long, siglip, 64)
    assert measured["num_cut"] == 1
    assert "fracture" in measured["cut"][0]["lost"]
    llama = load_tokenizer(str(tiny_mllama), "decoder_tokenizer")
    short, length = (int(number) for number in measure_chats(long, llama, 64)["lengths"])
    # The turns around the words count too.
    assert 10 < short < length
    assert length > len(llama("No fracture. " * 100).input_ids)

import datasets
import pytest
import torch

from medfinetune.errors import InputError
from medfinetune.evaluation import decoder_suite
from medfinetune.evaluation.cases import pixel_keys
from medfinetune.evaluation.decoder_suite import evaluate_decoder
from medfinetune.evaluation.lexicon import load_lexicon

LEXICON = load_lexicon("phantom")


def _number(chat):
    return chat["images"][0].getpixel((0, 0))[0]


def _generate(model, processor, chats, max_new_tokens, batch_size):
    """Writes what the image shows, in the language of the prompt."""
    texts = []
    for start in range(0, len(chats), batch_size):
        for chat in chats[start : start + batch_size]:
            side = ("left", "right")[_number(chat) % 2]
            english = "report" in chat["messages"][0]["content"][-1]["text"]
            texts.append(f"Effusion on the {side}." if english else f"{side}可见积液。")
    return texts


def _perplexity(model, processor, chats, batch_size, max_length):
    told = [chats[i]["messages"][-1]["content"][0]["text"] for i in range(len(chats))]
    wrong = sum(str(_number(chats[i])) not in text for i, text in enumerate(told))
    return {"perplexity": 1.0 + wrong, "num_tokens": max_length}


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(decoder_suite, "generate", _generate)
    monkeypatch.setattr(decoder_suite, "perplexity", _perplexity)
    return torch.nn.Linear(2, 3)


def test_figures_and_their_control(model, pairs, chats):
    result, rows = evaluate_decoder(model, None, chats, pixel_keys(pairs), LEXICON, batch_size=7)
    assert result["finding_accuracy"] == 1.0
    assert 0.1 < result["finding_accuracy_shuffled_image"] < 0.9
    assert result["finding_accuracy_majority"] == 0.5
    assert result["finding_accuracy_majority_values"] == {"effusion": "left"}
    assert (result["num_cases"], result["num_findings"]) == (40, 40)
    assert result["finding_accuracy_by_finding"]["effusion"]["num_findings"] == 40
    assert result["finding_accuracy_by_language"]["zh"]["finding_accuracy"] == 1.0
    assert result["num_cases_by_language"] == {"en": 20, "zh": 20}
    assert result["perplexity"] == 1.0
    assert result["perplexity_shuffled_image"] > 10
    assert set(result["bleu"]) == set(result["bleu_shuffled_image"]) == {"en", "zh"}
    assert "tok:zh" in result["bleu"]["zh"]["signature"]
    assert result["bleu"]["en"]["score"] > 0
    assert len(rows) == 40
    assert rows[2]["id"] == "case-1-en"
    assert rows[2]["reference"] == "Case 1. right effusion."
    assert rows[2]["generated"] == "Effusion on the right."
    assert rows[2]["findings"] == {"effusion": {"reference": "right", "stated": "right", "right": True}}
    wrong = sum(not row["findings_shuffled_image"]["effusion"]["right"] for row in rows)
    assert result["finding_accuracy_shuffled_image"] == pytest.approx(1 - wrong / 40)


def test_without_a_lexicon_there_is_no_finding_accuracy(model, pairs, chats):
    result, rows = evaluate_decoder(model, None, chats, pixel_keys(pairs))
    assert not any("finding" in key for key in result)
    assert not any("finding" in key for key in rows[0])


def test_what_cannot_be_shuffled_is_said(model, pairs, chats):
    result, _ = evaluate_decoder(model, None, chats.select([0, 1]), pixel_keys(pairs)[:2], LEXICON)
    assert "one image belongs to 2 of 2 cases" in result["no_shuffled_image"]
    assert "finding_accuracy_shuffled_image" not in result


def test_a_chat_without_an_answer_is_named(model, pairs, chats):
    rows = chats.to_list()
    rows[3]["messages"] = rows[3]["messages"][:1]
    broken = datasets.Dataset.from_list(rows, features=chats.features)
    with pytest.raises(InputError, match="chat case-1-zh: does not end with the assistant's turn"):
        evaluate_decoder(model, None, broken, pixel_keys(pairs))

import math

import pytest
import torch
from PIL import Image

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.generation import generate, likelihoods, perplexity
from medfinetune.decoder.model import load_decoder


@pytest.fixture(scope="module")
def loaded(tiny_mllama):
    return load_decoder(str(tiny_mllama))


def chats(num):
    rows = []
    for i in range(num):
        parts = [{"type": "image"}, {"type": "text", "text": "What is seen? " * (i + 1)}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Nothing at all. " * (i + 1)}]
        rows.append({"id": str(i), "images": [Image.effect_noise((48, 48), 20 * i + 5)], "messages": messages})
    return rows


def test_batches_answer_as_single_rows_do(loaded):
    """Greedy, left-padded: a row's answer does not depend on its neighbours, nor on luck."""
    rows = chats(5)
    together = generate(*loaded, rows, max_new_tokens=12, batch_size=5)
    assert together == generate(*loaded, rows, max_new_tokens=12, batch_size=1)
    assert len(together) == 5
    assert all("<|" not in text for text in together)


def test_the_given_answer_is_not_shown(loaded):
    rows = chats(1)
    other = [rows[0] | {"messages": [rows[0]["messages"][0], {"role": "assistant", "content": "Something else."}]}]
    unanswered = [rows[0] | {"messages": rows[0]["messages"][:1]}]
    answers = [generate(*loaded, chat, max_new_tokens=8) for chat in (rows, other, unanswered)]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_perplexity_equals_the_plain_formula(loaded, batch_size):
    model, processor = loaded
    rows = chats(4)
    total, count = 0.0, 0
    for row in rows:
        batch = MllamaCollator(processor, 2048)([row])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            log_probs = model(**batch).logits[0].double().log_softmax(-1)
        for position, label in enumerate(labels.tolist()):
            if label != -100:
                total -= log_probs[position - 1, label].item()
                count += 1
    scored = perplexity(model, processor, rows, batch_size=batch_size)
    assert scored["num_tokens"] == count
    assert math.isclose(scored["perplexity"], math.exp(total / count), rel_tol=1e-4)


def test_likelihoods_add_up_to_perplexity_in_any_batch(loaded):
    rows = chats(5)
    sums, counts = likelihoods(*loaded, rows, batch_size=4)
    whole = perplexity(*loaded, rows, batch_size=4)
    assert sum(counts) == whole["num_tokens"]
    assert math.exp(sum(sums) / sum(counts)) == pytest.approx(whole["perplexity"], rel=1e-12)
    # An answer is i + 1 times as long as the first, each has its own end.
    assert [count - 1 for count in counts] == [(counts[0] - 1) * (i + 1) for i in range(5)]
    alone = [likelihoods(*loaded, [row]) for row in rows]
    assert sums == pytest.approx([one[0][0] for one in alone], rel=1e-4)
    assert counts == [one[1][0] for one in alone]
    assert all(isinstance(value, kind) for values, kind in ((sums, float), (counts, int)) for value in values)


def test_likelihoods_are_of_the_image_and_the_answer(loaded):
    rows = chats(2)
    own, counts = likelihoods(*loaded, rows)
    seen, same = likelihoods(*loaded, [rows[0], rows[1] | {"images": rows[0]["images"]}])
    assert counts == same
    assert seen[0] == pytest.approx(own[0], rel=1e-5)
    assert abs(seen[1] - own[1]) > 1e-3

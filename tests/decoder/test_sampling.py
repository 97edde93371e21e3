"""Draws row by row: right shares, and the same in any batch."""

import pytest
import torch
from PIL import Image

from medfinetune.decoder.generation import generate, generate_candidates
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.sampling import RowSampler


def draws(logits, num, temperature=1.0, top_p=1.0):
    rows = logits.expand(num, -1)
    return RowSampler(range(num), temperature, top_p)(torch.zeros(num, 1), rows).argmax(dim=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_softmax_says(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    shares = torch.bincount(draws(logits, 20_000, temperature), minlength=4) / 20_000
    torch.testing.assert_close(shares, (logits / temperature).softmax(0), atol=0.015, rtol=0)


def test_the_tail_is_never_drawn():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    shares = torch.bincount(draws(logits, 20_000, top_p=0.7), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015, rtol=0)
    assert (draws(logits, 100, top_p=1e-6) == 0).all()


def test_a_row_is_drawn_alike_wherever_it_stands():
    torch.manual_seed(0)
    steps = torch.randn(5, 1, 30)
    alone = RowSampler([7])
    beside = RowSampler([3, None, 7])
    for logits in steps:
        one = alone(torch.zeros(1, 1), logits)
        three = beside(torch.zeros(3, 1), torch.cat([torch.randn(2, 30), logits]))
        torch.testing.assert_close(one[0], three[2])


def test_greedy_rows_stay_as_they_are():
    logits = torch.randn(2, 30)
    mixed = RowSampler([None, 5])(torch.zeros(2, 1), logits)
    assert torch.equal(mixed[0], logits[0])
    assert not torch.equal(mixed[1], logits[1])
    assert RowSampler([None, None])(torch.zeros(2, 1), logits) is logits


@pytest.fixture(scope="module")
def decoder(tiny_mllama):
    return load_decoder(str(tiny_mllama))


def chats():
    images = [Image.linear_gradient("L").rotate(90 * i).convert("RGB") for i in range(3)]
    return [
        {"id": str(i), "images": [image], "prompt": "x" * (1 + 30 * i), "completion": ""}
        for i, image in enumerate(images)
    ]


def test_candidates_are_the_greedy_text_and_draws_that_a_batch_does_not_change(decoder):
    seeds = [[None, 10 * i + 1, 10 * i + 2] for i in range(3)]
    together = generate_candidates(*decoder, chats(), seeds, max_new_tokens=8)
    assert [own[0] for own in together] == generate(*decoder, chats(), max_new_tokens=8, batch_size=3, progress=False)
    alone = [
        generate_candidates(*decoder, [chat], [own], max_new_tokens=8)[0]
        for chat, own in zip(chats(), seeds, strict=True)
    ]
    assert alone == together
    assert all(len(set(own)) == 3 for own in together)


def test_the_clock_is_told_of_every_batch(decoder):
    told = []
    generate_candidates(*decoder, chats()[:2], [[None, 1], [None, 2]], 5, on_times=lambda *times: told.append(times))
    [(first, rest, num_rows, num_steps)] = told
    assert first > 0
    assert rest > 0
    assert (num_rows, num_steps) == (4, 5)

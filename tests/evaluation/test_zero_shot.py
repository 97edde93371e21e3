import math

import torch
from torch.nn import functional as F

from medfinetune.evaluation.zero_shot import class_probabilities, class_scores, embed_classes

PROMPTS = [["g0"], ["g1"], ["g2", "g2b"]]


def _embed(texts):
    generator = torch.Generator().manual_seed(0)
    table = {text: torch.randn(5, generator=generator) for prompts in PROMPTS for text in prompts}
    return F.normalize(torch.stack([table[text] for text in texts]), dim=-1)


def test_prompts_are_embedded_class_by_class():
    classes = embed_classes(PROMPTS, _embed)
    assert [len(embeds) for embeds in classes] == [1, 1, 2]
    torch.testing.assert_close(classes[2], _embed(["g2", "g2b"]))


def test_scores_and_probabilities_against_a_plain_loop():
    classes = embed_classes(PROMPTS, _embed)
    images = F.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    scores = class_scores(images, classes, 3.0, -1.0)
    shares = class_probabilities(scores)
    for row, image in enumerate(images):
        match = []
        for embeds in classes:
            each = [1 / (1 + math.exp(-(3.0 * float(image @ embed) - 1.0))) for embed in embeds]
            match.append(sum(each) / len(each))
        for number, expected in enumerate(match):
            assert math.isclose(scores[row, number], math.log(expected), rel_tol=1e-4, abs_tol=1e-5)
            assert math.isclose(shares[row, number], expected / sum(match), rel_tol=1e-4)

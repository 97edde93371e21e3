import math

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.metrics import embed_images, embed_texts, recall_at_k, retrieval_metrics
from medfinetune.encoder.model import load_encoder


def reference_recall(scores, relevant, k):
    hits = []
    for row, right in zip(scores.tolist(), relevant.tolist(), strict=True):
        if not any(right):
            continue
        # Wrong answers come first among equals.
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        hits.append(any(right[j] for j in order[:k]))
    return sum(hits) / len(hits)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (20, 13)])
def test_recall_equals_a_plain_ranking(shape):
    scores = torch.randint(0, 6, shape).double()  # with ties
    relevant = torch.rand(shape) < 0.3
    relevant[0, 0] = True
    for k, value in recall_at_k(scores, relevant, (1, 5, 10)).items():
        assert math.isclose(value, reference_recall(scores, relevant, int(k.rsplit("_", 1)[1])))


def test_constant_scores_find_nothing():
    assert recall_at_k(torch.ones(4, 4), torch.eye(4, dtype=torch.bool))["recall_at_1"] == 0


def test_languages_are_searched_apart_and_equal_answers_count():
    eye = torch.eye(4)
    images = torch.cat([eye[[0, 1]], eye[[0, 1]]])  # two images, each in two languages
    texts = torch.cat([eye[[0, 1]], eye[[1, 0]]])  # right in English, swapped in Chinese
    metrics = retrieval_metrics(images, texts, ["en", "en", "zh", "zh"], ["a", "b", "a", "b"], ["x", "y", "u", "v"])
    assert metrics["image_to_text_recall_at_1_en"] == 1
    assert metrics["image_to_text_recall_at_1_zh"] == 0
    assert metrics["text_to_image_recall_at_1_zh"] == 0
    assert metrics["recall_at_1"] == 0.5
    # The same text twice: either image is a right answer.
    same = retrieval_metrics(eye[[0, 1]], eye[[1, 0]], ["en", "en"], ["a", "b"], ["x", "x"])
    assert same["recall_at_1"] == 1


def test_embeddings_equal_the_forward(tiny_siglip):
    model, processor = load_encoder(str(tiny_siglip))
    model.eval()
    images = [Image.effect_noise((50, 60), sigma) for sigma in (10, 40, 90)]
    texts = ["Knee grade 3.", "未见骨折。", "No effusion."]
    rows = [{"images": [image], "text": text} for image, text in zip(images, texts, strict=True)]
    with torch.no_grad():
        outputs = model(**SigLIPCollator(processor)(rows))
    torch.testing.assert_close(embed_images(model, processor, images, batch_size=2), outputs.image_embeds)
    torch.testing.assert_close(embed_texts(model, processor, texts, batch_size=2), outputs.text_embeds)
    assert torch.allclose(F.normalize(outputs.text_embeds, dim=-1), outputs.text_embeds)

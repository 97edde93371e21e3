import math

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.labels import group_ids_of, labels_from_groups
from medfinetune.encoder.metrics import (
    embed_images,
    embed_texts,
    mean_average_precision,
    rank_pairs,
    recall_at_k,
    retrieval_metrics,
)
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


def reference_map(scores, relevant):
    precisions = []
    for row, right in zip(scores.tolist(), relevant.tolist(), strict=True):
        if not any(right):
            continue
        order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
        places = [place for place, j in enumerate(order, start=1) if right[j]]
        precisions.append(sum(found / place for found, place in enumerate(places, start=1)) / len(places))
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (20, 13), (13, 40)])
@pytest.mark.parametrize("ties", [True, False])
def test_average_precision_equals_a_plain_ranking(shape, ties):
    scores = torch.randint(0, 6, shape).double() if ties else torch.randn(shape).double()
    relevant = torch.rand(shape) < 0.3
    relevant[0, 0] = True
    relevant[-1] = True  # a query to which every answer is right
    assert math.isclose(mean_average_precision(scores, relevant), reference_map(scores, relevant))


def test_average_precision_equals_that_of_scikit_learn_without_ties():
    scores, relevant = torch.randn(20, 30), torch.rand(20, 30) < 0.2
    relevant[:, 0] = True
    expected = [average_precision_score(r.numpy(), s.numpy()) for s, r in zip(scores, relevant, strict=True)]
    assert math.isclose(mean_average_precision(scores, relevant), sum(expected) / 20, rel_tol=1e-9)


@pytest.mark.parametrize("value", [1.0, math.nan, -math.inf])
def test_constant_scores_find_nothing(value):
    scores, eye = torch.full((4, 4), value), torch.eye(4, dtype=torch.bool)
    assert recall_at_k(scores, eye)["recall_at_1"] == 0
    assert mean_average_precision(scores, eye) == 0.25  # the one right answer comes last
    two = eye | eye.roll(1, 0)
    assert math.isclose(mean_average_precision(scores, two), (1 / 3 + 2 / 4) / 2)


def test_without_right_answers_there_is_no_figure():
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    assert math.isnan(mean_average_precision(torch.randn(3, 4), nothing))
    assert math.isnan(recall_at_k(torch.randn(3, 4), nothing)["recall_at_5"])


def test_a_set_ranked_in_chunks_equals_one_table():
    images, texts = F.normalize(torch.randn(2, 23, 6), dim=-1)
    languages = ["en" if i % 3 else "zh" for i in range(23)]
    keys, words = [f"image {i // 2}" for i in range(23)], [f"text {i % 9}" for i in range(23)]
    groups = group_ids_of({"pixel_sha256": [[key] for key in keys], "text": words})
    metrics = retrieval_metrics(images, texts, languages, groups)
    whole = {}
    for language in ("en", "zh"):
        rows = [i for i in range(23) if languages[i] == language]
        scores = images[rows] @ texts[rows].T
        right = torch.tensor([[keys[i] == keys[j] or words[i] == words[j] for j in rows] for i in rows])
        for way, table, relevant in (("image_to_text", scores, right), ("text_to_image", scores.T, right.T)):
            for k in (1, 5, 10):
                whole[f"{way}_recall_at_{k}_{language}"] = reference_recall(table, relevant, k)
            whole[f"{way}_map_{language}"] = reference_map(table, relevant)
    for name in ("recall_at_1", "recall_at_5", "recall_at_10", "map"):
        whole[name] = sum(value for key, value in whole.items() if f"_{name}_" in key) / 4
    assert metrics.keys() == whole.keys()
    for name, value in whole.items():
        assert math.isclose(metrics[name], value, rel_tol=1e-9), name
    for name, ranking in rank_pairs(images, texts, languages, groups).items():
        chunked = rank_pairs(images, texts, languages, groups, chunk_rows=4)[name]
        assert all(torch.equal(one, other) for one, other in zip(ranking, chunked, strict=True))


def test_languages_are_searched_apart_and_equal_answers_count():
    eye = torch.eye(4)
    images = torch.cat([eye[[0, 1]], eye[[0, 1]]])  # two images, each in two languages
    texts = torch.cat([eye[[0, 1]], eye[[1, 0]]])  # right in English, swapped in Chinese
    groups = group_ids_of({"pixel_sha256": [["a"], ["b"], ["a"], ["b"]], "text": ["x", "y", "u", "v"]})
    metrics = retrieval_metrics(images, texts, ["en", "en", "zh", "zh"], groups)
    assert metrics["image_to_text_recall_at_1_en"] == 1
    assert metrics["image_to_text_recall_at_1_zh"] == 0
    assert metrics["text_to_image_recall_at_1_zh"] == 0
    assert metrics["recall_at_1"] == 0.5
    # The same text twice: either image is a right answer.
    same = group_ids_of({"pixel_sha256": [["a"], ["b"]], "text": ["x", "x"]})
    assert retrieval_metrics(eye[[0, 1]], eye[[1, 0]], ["en", "en"], same)["recall_at_1"] == 1


def test_texts_that_the_tokenizer_cannot_tell_apart_are_right_for_each_other():
    """Perfect embeddings find everything: case and full stops make no other text, but the sign of a size does."""
    texts = ["No fracture.", "no fracture", "x", "y"]
    embeds = torch.eye(4)[[0, 0, 1, 2]]
    found = retrieval_metrics(embeds, embeds, ["en"] * 4, group_ids_of({"text": texts}))
    assert found["recall_at_1"] == found["map"] == 1
    signs = retrieval_metrics(embeds, embeds, ["en"] * 4, group_ids_of({"text": ["<5 mm", ">5 mm", "x", "y"]}))
    assert signs["recall_at_1"] == 0.5


@pytest.mark.parametrize(
    ("task", "by_label", "recall"), [("caption", True, 1), ("caption", False, 0), ("question", True, 0)]
)
def test_texts_of_one_label_are_right_as_in_training(task, by_label, recall):
    columns = {"text": ["grade two", "second grade"], "label": ["2", "2"], "source": ["knee"] * 2, "task": [task] * 2}
    eye, groups = torch.eye(2), group_ids_of(columns)
    assert retrieval_metrics(eye, eye.flip(0), ["en"] * 2, groups, by_label)["recall_at_1"] == recall
    if by_label:
        assert (labels_from_groups(groups, groups)[0][0, 1] == 1) == bool(recall)


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

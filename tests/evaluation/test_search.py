import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medfinetune.encoder.labels import group_ids_of
from medfinetune.evaluation.bootstrap import Bootstrap
from medfinetune.evaluation.search import pooled_recall, search_figures


def test_pools_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(23, 6, generator=generator), dim=-1)
    texts_embeds = F.normalize(images + 0.6 * torch.randn(23, 6, generator=generator), dim=-1)
    texts = [f"text {i // 2}" for i in range(23)]
    result = pooled_recall(images, texts_embeds, group_ids_of({"text": texts}), pool_size=5, seed=7)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(7)).tolist()
    right = 0
    for start in range(0, 20, 5):
        pool = order[start : start + 5]
        for i in pool:
            best = max(pool, key=lambda j: float(images[i] @ texts_embeds[j]))
            right += texts[best] == texts[i]
    assert result["image_to_text"] == pytest.approx(right / 20)
    assert 0.3 < result["image_to_text"] < 1
    assert (result["num_pools"], result["pool_size"]) == (4, 5)
    assert 1 / 5 <= result["chance"] < 0.4


def test_in_a_pool_texts_of_one_label_are_right_for_each_other():
    columns = {"text": ["a", "b", "c"], "label": ["2", "2", "3"], "source": ["knee"] * 3}
    swapped = torch.eye(3)[[1, 0, 2]]
    found = pooled_recall(torch.eye(3), swapped, group_ids_of(columns), pool_size=3)
    assert found["image_to_text"] == found["text_to_image"] == 1
    assert found["chance"] == pytest.approx(5 / 9)
    unlabelled = pooled_recall(torch.eye(3), swapped, group_ids_of({"text": columns["text"]}), pool_size=3)
    assert unlabelled["image_to_text"] == pytest.approx(1 / 3)


def test_intervals_of_every_figure_against_plain_resampling():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(40, 6, generator=generator), dim=-1)
    texts_embeds = F.normalize(images + 0.7 * torch.randn(40, 6, generator=generator), dim=-1)
    languages = ["en" if i < 25 else "zh" for i in range(40)]
    texts, keys = [f"text {i}" for i in range(40)], [f"image {i}" for i in range(40)]
    clusters = [f"patient {i // 2}" for i in range(40)]
    groups = group_ids_of({"text": texts, "pixel_sha256": [[key] for key in keys]})
    found = search_figures(images, texts_embeds, groups, languages, keys, clusters, pool_size=5, num_resamples=60)
    assert found["recall_ci"].keys() == found["recall"].keys()
    hits = {}
    for language in ("en", "zh"):
        rows = [i for i in range(40) if languages[i] == language]
        for i in rows:
            scores = {j: float(images[i] @ texts_embeds[j]) for j in rows}
            hits["image_to_text", language, i] = sorted(rows, key=lambda j: -scores[j]).index(i) < 5
            scores = {j: float(images[j] @ texts_embeds[i]) for j in rows}
            hits["text_to_image", language, i] = sorted(rows, key=lambda j: -scores[j]).index(i) < 5
    by_name, together = {}, []
    for counts in Bootstrap(clusters, 60).counts:
        means = []
        for way in ("image_to_text", "text_to_image"):
            for language in ("en", "zh"):
                drawn = [
                    hits[way, language, i]
                    for i in range(40)
                    if languages[i] == language
                    for _ in range(int(counts[i // 2]))
                ]
                means.append(np.mean(drawn))
                by_name.setdefault(f"{way}_recall_at_5_{language}", []).append(means[-1])
        together.append(np.mean(means))
    for name, values in (by_name | {"recall_at_5": together}).items():
        np.testing.assert_allclose(found["recall_ci"][name], np.percentile(values, [2.5, 97.5]), err_msg=name)
        low, high = found["recall_ci"][name]
        assert low <= found["recall"][name] <= high
    low, high = found["recall_pools"]["en"]["image_to_text_ci"]
    assert low < found["recall_pools"]["en"]["image_to_text"] < high
    none = search_figures(images, texts_embeds, groups, languages, keys, clusters, pool_size=5, num_resamples=0)
    assert "recall_ci" not in none
    assert none["recall"] == found["recall"]

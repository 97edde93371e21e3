import pytest
import torch
from torch.nn import functional as F

from medfinetune.evaluation.search import pooled_recall


def test_pools_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(23, 6, generator=generator), dim=-1)
    texts_embeds = F.normalize(images + 0.6 * torch.randn(23, 6, generator=generator), dim=-1)
    texts = [f"text {i // 2}" for i in range(23)]
    result = pooled_recall(images, texts_embeds, texts, pool_size=5, seed=7)
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

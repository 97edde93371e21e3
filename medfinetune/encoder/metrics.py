"""Embeddings of a whole set, and how well images and texts find each other in it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from medfinetune.encoder.collator import SigLIPCollator


@torch.no_grad()
def embed_images(model: Any, processor: Any, images: Iterable[Image.Image], batch_size: int = 64) -> Tensor:
    """Unit-norm embeddings `(N, D)` of images, in fp32 on the CPU."""
    collator = SigLIPCollator(processor)
    embeds = []
    for batch in _batches(images, batch_size, "embedding images"):
        pixel_values = collator.images(batch)["pixel_values"].to(model.device, model.dtype)
        embeds.append(model.get_image_features(pixel_values=pixel_values).pooler_output.float().cpu())
    return F.normalize(torch.cat(embeds), dim=-1)


@torch.no_grad()
def embed_texts(model: Any, processor: Any, texts: Iterable[str], batch_size: int = 64) -> Tensor:
    """Unit-norm embeddings `(N, D)` of texts, in fp32 on the CPU."""
    collator = SigLIPCollator(processor)
    embeds = []
    for batch in _batches(texts, batch_size, "embedding texts"):
        input_ids = collator.texts(batch)["input_ids"].to(model.device)
        embeds.append(model.get_text_features(input_ids=input_ids).pooler_output.float().cpu())
    return F.normalize(torch.cat(embeds), dim=-1)


def recall_at_k(scores: Tensor, relevant: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of queries with a right answer among their k best.

    A wrong answer that scores the same as the best right one counts as ranked before it, so that a model that
    gives every pair one score finds nothing.

    Args:
        scores: `(N, M)`, higher is better.
        relevant: `(N, M)`, bool; several right answers a query are allowed. Queries without any are left out.
        ks: The sizes of the list; those beyond M count the whole list.

    Returns:
        `recall_at_<k>` in [0, 1] for each k; nan where no query has a right answer.
    """
    answerable = relevant.any(dim=1)
    scores, relevant = scores[answerable], relevant[answerable]
    best_right = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    rank = ((scores >= best_right) & ~relevant).sum(dim=1)
    return {f"recall_at_{k}": (rank < k).double().mean().item() for k in ks}


def retrieval_metrics(
    image_embeds: Tensor, text_embeds: Tensor, languages: Sequence[str], image_keys: Sequence[str], texts: Sequence[str]
) -> dict[str, float]:
    """Recall over a whole set, in both directions, each language among its own texts.

    Args:
        image_embeds: `(N, D)`, unit norm; row `i` is the image of pair `i`.
        text_embeds: `(N, D)`, unit norm.
        languages: Language of each text.
        image_keys: The same for the same pixels: such images share their right answers.
        texts: The same text is a right answer wherever it stands.

    Returns:
        `image_to_text_recall_at_<k>_<language>`, `text_to_image_recall_at_<k>_<language>`, and `recall_at_<k>`, the
        mean over directions and languages.
    """
    metrics: dict[str, float] = {}
    for language in sorted(set(languages)):
        rows = [i for i, other in enumerate(languages) if other == language]
        scores = image_embeds[rows] @ text_embeds[rows].T
        relevant = _same([image_keys[i] for i in rows]) | _same([texts[i] for i in rows])
        for direction, table, right in (
            ("image_to_text", scores, relevant),
            ("text_to_image", scores.T, relevant.T),
        ):
            for name, value in recall_at_k(table, right).items():
                metrics[f"{direction}_{name}_{language}"] = value
    for k in (1, 5, 10):
        values = [value for name, value in metrics.items() if f"_recall_at_{k}_" in name]
        metrics[f"recall_at_{k}"] = sum(values) / len(values)
    return metrics


def _same(keys: Sequence[str]) -> Tensor:
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    codes = torch.tensor([numbers[key] for key in keys])
    return codes[:, None] == codes[None, :]


def _batches(items: Iterable[Any], batch_size: int, what: str) -> Iterable[list[Any]]:
    items = list(items) if not hasattr(items, "__len__") else items
    for start in tqdm(range(0, len(items), batch_size), desc=what, unit="batch", leave=False):
        yield [items[i] for i in range(start, min(start + batch_size, len(items)))]

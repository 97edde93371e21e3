"""What a fine-tuned encoder can do: search in both directions, and zero-shot grading, each with its control."""

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from torch import Tensor

from medfinetune.encoder.metrics import embed_images, embed_texts, recall_at_k, retrieval_metrics
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import FirstImages
from medfinetune.evaluation.shuffling import derangement
from medfinetune.evaluation.zero_shot import Prompts, class_scores, embed_classes, true_values, zero_shot_accuracy


def evaluate_encoder(
    model: Any,
    processor: Any,
    pairs: datasets.Dataset,
    prompts: Prompts | None = None,
    pool_size: int = 64,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores the encoder on held-out pairs; of a pair with several images, the first counts.

    Args:
        pairs: The columns of `data.schema.FEATURES` with decoded images, as `load_pairs` gives them.
        prompts: For zero-shot grading, which is left out without them.
        pool_size: Cases that recall is measured among.
        seed: Draws the pools and shuffles the images.

    Returns:
        A plain dict: `recall_at_1_among_<pool size>` by language (image to text), `recall_pools` with both directions
        and counts, `recall` over the whole set, `zero_shot_accuracy` and what stands beside it; whatever is measured
        again with the images shuffled among the cases ends on `_shuffled_image`; where they cannot be shuffled,
        `no_shuffled_image` says why.

    Raises:
        InputError: The pairs' metadata does not hold what the prompts ask for.
    """
    keys = [sha256[0] for sha256 in pairs["pixel_sha256"]]
    # Chinese and English reports of one image need it embedded once.
    first_rows = {key: i for i, key in reversed(list(enumerate(keys)))}
    images = sorted(first_rows.values())
    truths = None
    if prompts is not None:
        truths = true_values([pairs["id"][i] for i in images], [pairs["metadata"][i] for i in images], prompts)
    unique_embeds = embed_images(model, processor, FirstImages(pairs, images), batch_size)
    places = {keys[row]: place for place, row in enumerate(images)}
    image_embeds = unique_embeds[[places[key] for key in keys]]
    text_embeds = embed_texts(model, processor, list(pairs["text"]), batch_size)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    result: dict[str, Any] = {"num_pairs": len(keys), "num_images": len(images), "num_parameters": num_parameters}
    result |= _search(image_embeds, text_embeds, pairs, keys, pool_size, seed)
    if prompts is not None and truths is not None:
        class_embeds = embed_classes(prompts, lambda texts: embed_texts(model, processor, texts, batch_size))
        scale, bias = model.logit_scale.exp().item(), model.logit_bias.item()
        scores = {name: class_scores(unique_embeds, embeds, scale, bias) for name, embeds in class_embeds.items()}
        result |= _grading(zero_shot_accuracy(scores, prompts, truths))
        if len(images) > 1:
            shuffled = derangement(range(len(images)), seed)
            moved = {name: table[shuffled] for name, table in scores.items()}
            control = zero_shot_accuracy(moved, prompts, truths)
            result["zero_shot_accuracy_shuffled_image"] = _mean(control, "accuracy")
            for attribute, figures in control.items():
                result["zero_shot_by_attribute"][attribute]["accuracy_shuffled_image"] = figures["accuracy"]
    return result


def pooled_recall(
    image_embeds: Tensor, text_embeds: Tensor, texts: Sequence[str], pool_size: int, seed: int = 0
) -> dict[str, Any]:
    """Recall@1 among small pools, averaged over as many disjoint random pools as the cases fill.

    Args:
        image_embeds: `(N, D)`, unit norm; row `i` is the image of case `i`.
        text_embeds: `(N, D)`, unit norm.
        texts: `N` texts; the same text is a right answer wherever it stands.
        pool_size: Cases in a pool; all there are where there are fewer. A remainder is left out.

    Returns:
        `image_to_text` and `text_to_image` in [0, 1], `chance`, `pool_size`, `num_pools`.
    """
    size = min(pool_size, len(texts))
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    pools = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
    found: dict[str, list[float]] = {"image_to_text": [], "text_to_image": []}
    chances = []
    for pool in pools:
        scores = image_embeds[pool] @ text_embeds[pool].T
        relevant = torch.tensor([[texts[i] == texts[j] for j in pool] for i in pool])
        found["image_to_text"].append(recall_at_k(scores, relevant, ks=(1,))["recall_at_1"])
        found["text_to_image"].append(recall_at_k(scores.T, relevant.T, ks=(1,))["recall_at_1"])
        chances.append(relevant.double().mean().item())
    figures = {direction: sum(values) / len(values) for direction, values in found.items()}
    return figures | {"chance": sum(chances) / len(chances), "pool_size": size, "num_pools": len(pools)}


def _search(
    image_embeds: Tensor, text_embeds: Tensor, pairs: datasets.Dataset, keys: list[str], pool_size: int, seed: int
) -> dict[str, Any]:
    texts, languages = list(pairs["text"]), list(pairs["language"])
    result: dict[str, Any] = {"recall_pools": {}, "recall_at_1_chance": {}}
    shuffled = None
    try:
        shuffled = derangement(keys, seed)
    except InputError as error:
        result["no_shuffled_image"] = str(error)
    for language in sorted(set(languages)):
        # Two texts of one image would be two right answers in a pool.
        rows = list({keys[i]: i for i in reversed(range(len(keys))) if languages[i] == language}.values())[::-1]
        pool_texts = [texts[i] for i in rows]
        pools = pooled_recall(image_embeds[rows], text_embeds[rows], pool_texts, pool_size, seed)
        name = f"recall_at_1_among_{pools['pool_size']}"
        result.setdefault(name, {})[language] = pools["image_to_text"]
        result["recall_at_1_chance"][language] = pools["chance"]
        if shuffled is not None:
            others = image_embeds[[shuffled[i] for i in rows]]
            control = pooled_recall(others, text_embeds[rows], pool_texts, pool_size, seed)
            result.setdefault(f"{name}_shuffled_image", {})[language] = control["image_to_text"]
            pools |= {f"{way}_shuffled_image": control[way] for way in ("image_to_text", "text_to_image")}
        result["recall_pools"][language] = pools | {"num_cases": len(rows)}
    result["recall"] = retrieval_metrics(image_embeds, text_embeds, languages, keys, texts)
    if shuffled is not None:
        others = image_embeds[shuffled]
        result["recall_shuffled_image"] = retrieval_metrics(others, text_embeds, languages, keys, texts)
    return result


def _grading(by_attribute: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "zero_shot_accuracy": _mean(by_attribute, "accuracy"),
        "zero_shot_chance": _mean(by_attribute, "chance"),
        "zero_shot_majority": _mean(by_attribute, "majority"),
        "zero_shot_by_attribute": by_attribute,
    }


def _mean(by_attribute: dict[str, dict[str, Any]], figure: str) -> float:
    return sum(figures[figure] for figures in by_attribute.values()) / len(by_attribute)

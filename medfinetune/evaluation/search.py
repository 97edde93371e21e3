"""Search in both directions: among small pools, and over the whole set; each with its interval and its control."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfinetune.encoder.labels import right_answers
from medfinetune.encoder.metrics import average_rankings, rank_pairs, rank_right_answers
from medfinetune.errors import InputError
from medfinetune.evaluation.bootstrap import Bootstrap
from medfinetune.evaluation.shuffling import derangement


def search_figures(
    image_embeds: Tensor,
    text_embeds: Tensor,
    groups: Tensor,
    languages: Sequence[str],
    keys: Sequence[str],
    clusters: Sequence[Hashable],
    pool_size: int = 64,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Recall and mean average precision of `N` pairs.

    Args:
        image_embeds: `(N, D)`, unit norm; row `i` is the image of pair `i`.
        text_embeds: `(N, D)`, unit norm.
        groups: `(N, 5)`, from `group_ids_of`; `right_answers` says what they make right.
        languages: Of each pair; each is searched among its own texts.
        keys: What each pair's image is by content.
        clusters: What each pair is resampled with: its patient where known, else its image.
        pool_size: Cases that `recall_at_1_among_<pool size>` is measured among.
        num_resamples: For the intervals; left out at 0.
        seed: Draws pools and resamples, and shuffles the images.
    """
    result: dict[str, Any] = {"recall_pools": {}, "recall_at_1_chance": {}}
    shuffled = None
    try:
        shuffled = derangement(keys, seed)
    except InputError as error:
        result["no_shuffled_image"] = str(error)
    for language in sorted(set(languages)):
        # Two texts of one image would be two right answers in a pool.
        rows = list({keys[i]: i for i in reversed(range(len(keys))) if languages[i] == language}.values())[::-1]
        owners = [clusters[i] for i in rows]
        pools = pooled_recall(
            image_embeds[rows], text_embeds[rows], groups[rows], pool_size, seed, owners, num_resamples
        )
        name = f"recall_at_1_among_{pools['pool_size']}"
        result.setdefault(name, {})[language] = pools["image_to_text"]
        result["recall_at_1_chance"][language] = pools["chance"]
        if shuffled is not None:
            others = image_embeds[[shuffled[i] for i in rows]]
            control = pooled_recall(others, text_embeds[rows], groups[rows], pool_size, seed)
            result.setdefault(f"{name}_shuffled_image", {})[language] = control["image_to_text"]
            pools |= {f"{way}_shuffled_image": control[way] for way in ("image_to_text", "text_to_image")}
        result["recall_pools"][language] = pools | {"num_cases": len(rows)}
    rankings = rank_pairs(image_embeds, text_embeds, languages, groups)
    result["recall"] = average_rankings(rankings)
    if num_resamples:
        result["recall_ci"] = _intervals(rankings, Bootstrap(clusters, num_resamples, seed))
    if shuffled is not None:
        control = rank_pairs(image_embeds[shuffled], text_embeds, languages, groups)
        result["recall_shuffled_image"] = average_rankings(control)
    return result


def pooled_recall(
    image_embeds: Tensor,
    text_embeds: Tensor,
    groups: Tensor,
    pool_size: int,
    seed: int = 0,
    clusters: Sequence[Hashable] = (),
    num_resamples: int = 0,
) -> dict[str, Any]:
    """Recall@1 among small pools, averaged over as many disjoint random pools as the cases fill.

    Args:
        image_embeds: `(N, D)`, unit norm; row `i` is the image of case `i`.
        text_embeds: `(N, D)`, unit norm.
        groups: `(N, 5)`, from `group_ids_of`; `right_answers` says what they make right.
        pool_size: Cases in a pool; all there are where there are fewer. A remainder is left out.
        seed: Draws the pools, and the resamples.
        clusters: `N`, what each case is resampled with; needed where `num_resamples` is not 0.
        num_resamples: For the intervals; left out at 0.

    Returns:
        `image_to_text` and `text_to_image` in [0, 1], each with its interval as `..._ci`, `chance`, `pool_size`,
        `num_pools`.
    """
    size = min(pool_size, len(groups))
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    pools = order[: len(order) // size * size].split(size)
    hits: dict[str, list[Tensor]] = {"image_to_text": [], "text_to_image": []}
    chances = []
    for pool in pools:
        scores = image_embeds[pool] @ text_embeds[pool].T
        relevant = right_answers(groups[pool], groups[pool])
        for way, table in (("image_to_text", scores), ("text_to_image", scores.T)):
            hits[way].append(rank_right_answers(table, relevant)[0] < 1)
        chances.append(relevant.double().mean().item())
    found = {way: torch.cat(parts).double() for way, parts in hits.items()}
    figures: dict[str, Any] = {way: values.mean().item() for way, values in found.items()}
    if num_resamples:
        bootstrap = Bootstrap([clusters[i] for i in torch.cat(pools).tolist()], num_resamples, seed)
        for way, values in found.items():
            figures[f"{way}_ci"] = bootstrap.interval(bootstrap.means(values.numpy()))
    return figures | {"chance": sum(chances) / len(chances), "pool_size": size, "num_pools": len(pools)}


def _intervals(rankings: dict[tuple[str, str], Any], bootstrap: Bootstrap) -> dict[str, list[float]]:
    """Of every figure of `average_rankings`; the queries are resampled, what they are searched among stays."""
    intervals, together = {}, {}
    for (way, language), ranking in rankings.items():
        for name, values in ranking.figures().items():
            means = bootstrap.means(values.numpy(), ranking.rows.numpy())
            intervals[f"{way}_{name}_{language}"] = bootstrap.interval(means)
            together.setdefault(name, []).append(means)
    return intervals | {name: bootstrap.interval(np.mean(parts, axis=0)) for name, parts in together.items()}

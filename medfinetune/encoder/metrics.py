"""Embeddings of a whole set, and how well images and texts find each other in it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.labels import right_answers

KS = (1, 5, 10)
"""Sizes of the list of answers that recall is measured for."""


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
    """Unit-norm embeddings `(N, D)` of texts as long as the model was trained with, in fp32 on the CPU."""
    collator = SigLIPCollator(processor)
    embeds = []
    for batch in _batches(texts, batch_size, "embedding texts"):
        input_ids = collator.texts(batch)["input_ids"].to(model.device)
        embeds.append(model.get_text_features(input_ids=input_ids).pooler_output.float().cpu())
    return F.normalize(torch.cat(embeds), dim=-1)


def rank_right_answers(scores: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Where each query's right answers stand in its ranking.

    A wrong answer that scores the same as a right one counts as ranked before it, so that a model that gives every
    pair one score finds nothing; a score that is nan counts as the lowest.

    Args:
        scores: `(N, M)`, higher is better.
        relevant: `(N, M)`, bool; several right answers a query are allowed, and every query has one.

    Returns:
        `(N,)`, the wrong answers before the best right one, from 0; and `(N,)`, the average precision in [0, 1]: the
        mean, over the right answers, of the share of right ones down to their rank (Manning et al. 2008, Introduction
        to Information Retrieval, section 8.4).
    """
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    num_right = relevant.sum(dim=1, keepdim=True)
    right = scores.masked_fill(~relevant, -torch.inf).topk(int(num_right.max()), dim=1).values
    wrong = scores.masked_fill(relevant, -torch.inf).sort(dim=1).values
    wrong_before = scores.shape[1] - torch.searchsorted(wrong, right)
    # Where a right answer scores -inf, the right ones that were masked would count as wrong.
    wrong_before = torch.minimum(wrong_before, scores.shape[1] - num_right)
    place = torch.arange(1, right.shape[1] + 1, device=scores.device)
    precision = (place / (wrong_before + place).double()).masked_fill(place > num_right, 0.0)
    return wrong_before[:, 0], precision.sum(dim=1) / num_right[:, 0]


def recall_at_k(scores: Tensor, relevant: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of queries with a right answer among their k best, ties ranked as in `rank_right_answers`.

    Args:
        scores: `(N, M)`, higher is better.
        relevant: `(N, M)`, bool; several right answers a query are allowed. Queries without any are left out.
        ks: The sizes of the list; those beyond M count the whole list.

    Returns:
        `recall_at_<k>` in [0, 1] for each k; nan where no query has a right answer.
    """
    answerable = relevant.any(dim=1)
    if not answerable.any():
        return {f"recall_at_{k}": math.nan for k in ks}
    best, _ = rank_right_answers(scores[answerable], relevant[answerable])
    return {f"recall_at_{k}": (best < k).double().mean().item() for k in ks}


def mean_average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Mean of the queries' average precision, in [0, 1]; arguments, ties and nan are those of `recall_at_k`."""
    answerable = relevant.any(dim=1)
    if not answerable.any():
        return math.nan
    return rank_right_answers(scores[answerable], relevant[answerable])[1].mean().item()


class Ranking(NamedTuple):
    """Search in one direction and language, query by query.

    Attributes:
        rows: `(Q,)`, the pair that each query belongs to.
        best: `(Q,)`, the wrong answers before the best right one, from 0.
        average_precision: `(Q,)`, in [0, 1].
    """

    rows: Tensor
    best: Tensor
    average_precision: Tensor

    def figures(self) -> dict[str, Tensor]:
        """What each query adds to `recall_at_1`, `recall_at_5`, `recall_at_10` and `map`: `(Q,)`, in [0, 1]."""
        return {f"recall_at_{k}": (self.best < k).double() for k in KS} | {"map": self.average_precision}


def rank_pairs(
    image_embeds: Tensor,
    text_embeds: Tensor,
    languages: Sequence[str],
    groups: Tensor,
    by_label: bool = True,
    chunk_rows: int = 256,
) -> dict[tuple[str, str], Ranking]:
    """Searches a whole set in both directions, each language among its own texts.

    Args:
        image_embeds: `(N, D)`, unit norm; row `i` is the image of pair `i`.
        text_embeds: `(N, D)`, unit norm.
        languages: Language of each text.
        groups: `(N, 5)`, from `group_ids_of`: `right_answers` says what they make right.
        by_label: Whether the texts of an equal label are right too.
        chunk_rows: Queries handled at once; memory grows with `chunk_rows * N`.

    Returns:
        (`image_to_text` or `text_to_image`, language) -> the ranking of its queries, in the pairs' order.
    """
    found = {}
    for language in sorted(set(languages)):
        rows = torch.tensor([i for i, other in enumerate(languages) if other == language])
        for way, queries, answers in (
            ("image_to_text", image_embeds[rows], text_embeds[rows]),
            ("text_to_image", text_embeds[rows], image_embeds[rows]),
        ):
            ranked = []
            for chunk in torch.arange(len(rows)).split(chunk_rows):
                relevant = right_answers(groups[rows[chunk]], groups[rows], int(chunk[0]), by_label)
                ranked.append(rank_right_answers(queries[chunk] @ answers.T, relevant))
            best, precision = (torch.cat(parts) for parts in zip(*ranked, strict=True))
            found[way, language] = Ranking(rows, best, precision)
    return found


def retrieval_metrics(
    image_embeds: Tensor, text_embeds: Tensor, languages: Sequence[str], groups: Tensor, by_label: bool = True
) -> dict[str, float]:
    """Recall and mean average precision over a whole set; arguments are those of `rank_pairs`.

    Returns:
        `<image_to_text|text_to_image>_<recall_at_1|5|10, map>_<language>`, and `recall_at_<k>` and `map`, the means
        over directions and languages.
    """
    return average_rankings(rank_pairs(image_embeds, text_embeds, languages, groups, by_label))


def average_rankings(rankings: dict[tuple[str, str], Ranking]) -> dict[str, float]:
    """The figures of `retrieval_metrics` from what `rank_pairs` found."""
    metrics: dict[str, float] = {}
    together: dict[str, list[float]] = {}
    for (way, language), ranking in rankings.items():
        for name, values in ranking.figures().items():
            metrics[f"{way}_{name}_{language}"] = values.mean().item()
            together.setdefault(name, []).append(values.mean().item())
    return metrics | {name: sum(values) / len(values) for name, values in together.items()}


def _batches(items: Iterable[Any], batch_size: int, what: str) -> Iterable[list[Any]]:
    items = list(items) if not hasattr(items, "__len__") else items
    for start in tqdm(range(0, len(items), batch_size), desc=what, unit="batch", leave=False):
        yield [items[i] for i in range(start, min(start + batch_size, len(items)))]

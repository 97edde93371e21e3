"""Zero-shot grading: an image belongs to the class whose prompts most probably describe it."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medfinetune.errors import InputError
from medfinetune.parser import read_yaml

Prompts = dict[str, dict[str, list[str]]]
"""Attribute -> value -> prompts."""


def read_prompts(path: str | Path) -> Prompts:
    """Reads `attribute: {value: [prompt, ...]}`.

    Raises:
        InputError: The file is missing or not in that form.
    """
    table = read_yaml(Path(path))
    if not table:
        raise InputError(f"{path}: is empty; it must map each attribute to its values, and each value to its prompts")
    for attribute, values in table.items():
        if not isinstance(values, dict) or len(values) < 2:
            raise InputError(f"{path}: {attribute}: must map at least two values to lists of prompts")
        for value, prompts in values.items():
            if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
                raise InputError(f"{path}: {attribute}: {value}: must be a list of prompts")
    return {
        str(attribute): {str(value): prompts for value, prompts in values.items()}
        for attribute, values in table.items()
    }


def true_values(ids: Sequence[str], metadata: Sequence[str], prompts: Prompts) -> dict[str, dict[int, str]]:
    """What each row's metadata says about each attribute of the prompts.

    Args:
        ids: Of the rows, for messages.
        metadata: A JSON object for each row.

    Returns:
        Attribute -> row -> value, for the rows that know it.

    Raises:
        InputError: No row knows an attribute, or a row holds a value that has no prompts.
    """
    truths: dict[str, dict[int, str]] = {attribute: {} for attribute in prompts}
    for row, (identity, text) in enumerate(zip(ids, metadata, strict=True)):
        known = json.loads(text) if text else {}
        for attribute in prompts:
            value = known.get(attribute)
            if value is None:
                continue
            if str(value) not in prompts[attribute]:
                raise InputError(
                    f"pair {identity}: metadata: {attribute}: {value!r} has no prompts in the zero-shot file "
                    f"(it has {', '.join(prompts[attribute])})"
                )
            truths[attribute][row] = str(value)
    unknown = [attribute for attribute, values in truths.items() if not values]
    if unknown:
        raise InputError(f"metadata: no pair has the key {unknown[0]}, which the zero-shot file asks for")
    return truths


def embed_classes(prompts: Prompts, embed_texts: Callable[[list[str]], Tensor]) -> dict[str, list[Tensor]]:
    """The embeddings of each class's prompts.

    Args:
        embed_texts: Texts -> `(N, D)`, unit norm.

    Returns:
        Attribute -> for each class, in the prompts' order, `(num_prompts, D)`, unit norm.
    """
    lists = [texts for values in prompts.values() for texts in values.values()]
    embeds = iter(embed_texts([text for texts in lists for text in texts]).split([len(texts) for texts in lists]))
    return {attribute: [next(embeds) for _ in values] for attribute, values in prompts.items()}


def class_scores(image_embeds: Tensor, class_embeds: list[Tensor], logit_scale: float, logit_bias: float) -> Tensor:
    """Log of the mean, over a class's prompts, of the probability that the prompt belongs to the image.

    The probability is SigLIP's own, `sigmoid(logit_scale * cosine + logit_bias)` (Zhai et al. 2023, equation 1). A
    mean over embeddings would count prompts that are wrong for the image in everything else as much as the one that
    fits it.

    Args:
        image_embeds: `(N, D)`, unit norm.
        class_embeds: For each class `(num_prompts, D)`, unit norm.
        logit_scale: Already exponentiated.
        logit_bias: In logits.

    Returns:
        `(N, num_classes)`, in nats, at most 0.
    """
    scores = []
    for embeds in class_embeds:
        log_probability = F.logsigmoid(logit_scale * (image_embeds @ embeds.T) + logit_bias)
        scores.append(log_probability.logsumexp(dim=1) - math.log(len(embeds)))
    return torch.stack(scores, dim=1)


def zero_shot_accuracy(
    scores: dict[str, Tensor], prompts: Prompts, truths: dict[str, dict[int, str]]
) -> dict[str, dict[str, Any]]:
    """Accuracy of the best-scored class, attribute by attribute.

    Args:
        scores: Attribute -> `(N, num_classes)`, a row for each row that `truths` numbers.
        truths: From `true_values`.

    Returns:
        Attribute -> `accuracy` in [0, 1], `chance` (1 / number of classes), `majority` (the share of the most common
        value, which a constant answer reaches), `num_images`, `num_classes`.
    """
    result = {}
    for attribute, by_row in truths.items():
        values = list(prompts[attribute])
        best = scores[attribute][list(by_row)].argmax(dim=1).tolist()
        right = sum(values[place] == truth for place, truth in zip(best, by_row.values(), strict=True))
        result[attribute] = {
            "accuracy": right / len(by_row),
            "chance": 1 / len(values),
            "majority": max(Counter(by_row.values()).values()) / len(by_row),
            "num_images": len(by_row),
            "num_classes": len(values),
        }
    return result

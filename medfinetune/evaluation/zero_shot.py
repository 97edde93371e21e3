"""Zero-shot grading: an image belongs to the class whose prompts most probably describe it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def embed_classes(prompts: Sequence[Sequence[str]], embed_texts: Callable[[list[str]], Tensor]) -> list[Tensor]:
    """The embeddings of each class's prompts, which go through the model together.

    Args:
        prompts: Of each class.
        embed_texts: Texts -> `(N, D)`, unit norm.

    Returns:
        For each class `(num_prompts, D)`, unit norm.
    """
    embeds = embed_texts([text for texts in prompts for text in texts])
    return list(embeds.split([len(texts) for texts in prompts]))


def class_scores(image_embeds: Tensor, class_embeds: Sequence[Tensor], logit_scale: float, logit_bias: float) -> Tensor:
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


def class_probabilities(scores: Tensor) -> Tensor:
    """`(N, num_classes)`, rows sum to 1: each class's share of what `class_scores` gives all of them, in fp64."""
    return scores.double().softmax(dim=1)

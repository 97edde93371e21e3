"""What a fine-tuned decoder writes about held-out images, and what it writes about the wrong ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from medfinetune.decoder.generation import generate, perplexity
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import Chats, references
from medfinetune.evaluation.finding_accuracy import compare_findings, count_right, majority_accuracy
from medfinetune.evaluation.lexicon import Lexicon
from medfinetune.evaluation.shuffling import derangement
from medfinetune.evaluation.text import bleu_by_language


def evaluate_decoder(
    model: Any,
    processor: Any,
    chats: datasets.Dataset,
    pixel_keys: Sequence[tuple[str, ...]],
    lexicon: Lexicon | None = None,
    max_new_tokens: int = 256,
    max_length: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    texts: Mapping[str, Sequence[str]] | None = None,
    image_rows: list[int] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Generates text for held-out chats, with their own images and with those of others, and scores it.

    Args:
        chats: The columns of `load_chats`; the assistant's last turn is the reference.
        pixel_keys: What each chat's images are by content, from `cases.pixel_keys`.
        lexicon: For finding accuracy, which is left out without it.
        max_length: Tokens of a chat that perplexity is measured on.
        seed: Shuffles the images.
        texts: What was written already, greedily and without evidence: of the cases' own images (an empty name), of
            those of others (`_shuffled_image`, of `image_rows`).
        image_rows: For each case the place of the case whose images it gets; drawn by `pixel_keys` where left out.

    Returns:
        The figures as a plain dict, and a row for each case: `id`, `language`, `reference`, `generated`,
        `generated_shuffled_image`, and with a lexicon the `findings`. What is measured with the images shuffled
        among the cases ends on `_shuffled_image`; where they cannot be shuffled, `no_shuffled_image` says why.
    """
    truths, languages = references(chats), list(chats["language"])
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    result: dict[str, Any] = {
        "num_cases": len(truths),
        "num_cases_by_language": dict(sorted(Counter(languages).items())),
        "num_parameters": num_parameters,
    }
    rows = [
        {"id": identity, "language": language, "reference": truth}
        for identity, language, truth in zip(chats["id"], languages, truths, strict=True)
    ]
    runs: list[tuple[str, list[int] | None]] = [("", None)]
    try:
        # A chat that speaks of two images needs two.
        if image_rows is None:
            image_rows = derangement(pixel_keys, seed, strata=[len(key) for key in pixel_keys])
        runs.append(("_shuffled_image", image_rows))
    except InputError as error:
        result["no_shuffled_image"] = str(error)
    for suffix, image_rows in runs:
        inputs = Chats(chats, image_rows)
        written = (texts or {}).get(suffix)
        if written is None:
            written = generate(model, processor, inputs, max_new_tokens=max_new_tokens, batch_size=batch_size)
        likelihood = perplexity(model, processor, inputs, batch_size=batch_size, max_length=max_length)
        result[f"bleu{suffix}"] = bleu_by_language(written, truths, languages)
        result[f"perplexity{suffix}"] = likelihood["perplexity"]
        result["perplexity_num_tokens"] = likelihood["num_tokens"]
        for row, text in zip(rows, written, strict=True):
            row[f"generated{suffix}"] = text
        if lexicon is not None:
            result |= _findings(rows, written, lexicon, suffix)
    if lexicon is not None:
        floor = majority_accuracy(truths, lexicon)
        result["lexicon"] = lexicon.name
        result["finding_accuracy_majority"] = floor["finding_accuracy"]
        result["finding_accuracy_majority_values"] = floor["values"]
    return result, rows


def _findings(rows: list[dict[str, Any]], texts: list[str], lexicon: Lexicon, suffix: str) -> dict[str, Any]:
    comparisons = [compare_findings(text, row["reference"], lexicon) for text, row in zip(texts, rows, strict=True)]
    for row, comparison in zip(rows, comparisons, strict=True):
        row[f"findings{suffix}"] = comparison
    figures = count_right(comparisons, lexicon, [row["language"] for row in rows])
    counts = {key: figures[key] for key in ("num_findings", "num_references_without_findings")}
    return counts | {
        f"finding_accuracy{suffix}": figures["finding_accuracy"],
        f"finding_accuracy_by_finding{suffix}": figures["by_finding"],
        f"finding_accuracy_by_language{suffix}": figures["by_language"],
    }

"""Evaluates the decoder, and the system that it makes with the encoder and its index, each beside its controls."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from medfinetune.errors import InputError
from medfinetune.evaluation.cases import image_paths, pixel_keys
from medfinetune.evaluation.config import EvaluateConfig
from medfinetune.evaluation.decoder_suite import evaluate_decoder
from medfinetune.evaluation.findings import read_findings
from medfinetune.evaluation.lexicon import Lexicon
from medfinetune.evaluation.page import PREDICTIONS_FILE
from medfinetune.evaluation.paired import OWN, read_texts
from medfinetune.evaluation.report_cases import report_cases
from medfinetune.evaluation.report_suite import score_reports
from medfinetune.inference.conditions import conditions_of
from medfinetune.inference.controls import ControlledWriter
from medfinetune.inference.fingerprint import data_hash, encoder_hash
from medfinetune.inference.index import ImageIndex
from medfinetune.inference.pipeline import ReportPipeline
from medfinetune.inference.report import WritingOptions
from medfinetune.inference.trained import warn_of_evidence

_FORESEEN = (OWN, "shuffled_everything", "no_evidence")
"""Conditions whose perplexity is told."""


def check_system(
    config: EvaluateConfig, ids: Sequence[str], truths: Sequence[str], lexicon: Lexicon | None
) -> tuple[ImageIndex | None, list[str]]:
    """What is wrong with the system that a config names, told before hours of writing.

    Args:
        config: What is asked.
        ids: Of the cases.
        truths: Their references.
        lexicon: That `config` names.

    Returns:
        The index, where one is named; and what a user should know.

    Raises:
        InputError: The index is of another encoder or of other data, a variant is unknown, or a run that is compared
            with has not written about these cases.
    """
    index, warnings = None, []
    if config.index_dir is not None:
        encoder = encoder_hash(str(config.encoder_dir), config.encoder_revision)
        index = ImageIndex.load(config.index_dir, encoder, data_hash(config.data_dir))
    other_texts(config, ids)
    if config.split == "train":
        warnings.append("models that were trained on the split train have seen these cases")
    if config.decoder_dir is not None:
        conditions_of(config.evidence, config.variants)
        warnings += [line for line in [warn_of_evidence(config.decoder_dir, config.evidence)] if line]
        if lexicon is not None and not any(read_findings(text, lexicon) for text in truths):
            warnings.append(f"lexicon {config.lexicon}: none of the {len(truths)} references states a finding of it")
    return index, warnings


def other_texts(config: EvaluateConfig, ids: Sequence[str]) -> dict[str, list[str]]:
    """The texts of the runs that a config compares with, by the names that it gives them.

    Raises:
        InputError: A run has no predictions, or not of these cases.
    """
    found = {}
    for name, run in config.compared_with.items():
        path = Path(run)
        try:
            found[name] = read_texts(path / PREDICTIONS_FILE if path.is_dir() else path, ids)
        except InputError as error:
            raise InputError(f"compared_with: {name}: {error}") from error
    return found


def evaluate_system(
    encoder: tuple[Any, Any] | None,
    decoder: tuple[Any, Any],
    index: ImageIndex | None,
    pairs: datasets.Dataset,
    chats: datasets.Dataset,
    lexicon: Lexicon | None,
    config: EvaluateConfig,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes about every case with and without what the system knows, and scores it.

    Args:
        encoder: Model and processor, on the model's device; without them nothing is looked up, ranked or held against.
        decoder: Likewise.
        index: Of that encoder, for evidence.
        pairs: The columns of `load_pairs`.
        chats: Of the same ids in the same order.
        lexicon: For findings, which are left out without it.
        config: What is asked.

    Returns:
        `decoder`, the figures of the decoder that is told nothing (`evaluate_decoder`); `reports`, those of the system
        (`score_reports`); and a row for each case.
    """
    pipeline = ReportPipeline(*(encoder or (None, None)), *decoder, index, lexicon)
    options = _writing_options(config)
    writer = ControlledWriter(pipeline, pairs, chats, config.evidence, options, config.seed)
    conditions = conditions_of(config.evidence, config.variants)
    written = writer.write(conditions)
    foreseen = writer.likelihoods({name: one for name, one in conditions.items() if name in _FORESEEN})
    alone = {"": written.texts.get("no_evidence")}
    if config.evidence == "none" and config.num_candidates == 1:
        alone = {"": written.texts[OWN], "_shuffled_image": written.texts.get("shuffled_everything")}
    results: dict[str, Any] = {}
    results["decoder"], rows = evaluate_decoder(
        *decoder,
        chats,
        pixel_keys(pairs),
        lexicon,
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        batch_size=config.batch_size,
        seed=config.seed,
        image_rows=writer.others,
        texts={suffix: texts for suffix, texts in alone.items() if texts is not None},
    )
    results["reports"], scored = score_reports(
        report_cases(pairs, chats),
        written.texts,
        lexicon,
        similarities=written.similarities,
        evidence=written.evidence or None,
        compared_with=other_texts(config, list(pairs["id"])),
        likelihoods=foreseen,
        latency=written.latency,
        num_resamples=config.num_resamples,
        seed=config.seed,
    )
    results["reports"] |= {
        "split": config.split,
        "evidence": config.evidence,
        "num_candidates": config.num_candidates,
        "left_out": written.left_out,
    }
    images = image_paths(pairs, config.data_dir)
    return results, [row | one | {"image": image} for row, one, image in zip(rows, scored, images, strict=True)]


def _writing_options(config: EvaluateConfig) -> WritingOptions:
    return WritingOptions(
        num_candidates=config.num_candidates,
        rerank_weight=config.rerank_weight,
        min_probability=config.evidence_min_probability,
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_prompt_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )

"""Floating-point operations of a training sample, counted on the real 11B shape without computing anything.

All positions are labelled. Stock's head is counted as transformers computes it, once forward and once backward; ours
makes the scores a second time in the backward, as TRL's does. Attention counts as the plain products of its matrices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import MllamaConfig, masking_utils

from medfinetune.decoder.recompute import GIB, StoredBytes, measure_stored_bytes
from tests.benchmarks.decoder_shape import (
    NUM_TILES,
    lora,
    make_model,
    our_loss,
    real_config,
    stock_loss,
    train_as_ours,
    train_as_stock,
)

TOKENS = (64, 256, 512)
NUM_QUESTIONS = 4
KEYS = ("tflop_ratio_1tile_256", "tflop_ratio_1tile_512", "tflop_ratio_1tile_256_equal_memory")
KEYS += ("tflop_ratio_4tile_256", "tflop_ratio_4questions_64", "tflop_ratio_cache_64")


def count(
    way: str,
    num_tiles: int,
    num_tokens: int,
    config: MllamaConfig | None = None,
    recomputed: int | None = None,
    questions: int = 1,
    cached: bool = False,
) -> float:
    """Operations of one sample, forward and backward; the optimiser's are not matrix products.

    Args:
        way: `stock`, `stock without the tower's backward`, or `ours`.
        num_tiles: Tiles of the image, 1 or 4.
        num_tokens: Tokens of the text.
        config: The shape; the real one where left out.
        recomputed: Text layers that ours recomputes; all, as stock does, where left out.
        questions: Rows of the batch, all about the one image; the result is that of one.
        cached: Whether the image's projected features are given.
    """
    config = config or real_config()
    model = make_model(config, "meta", torch.bfloat16)
    with torch.device("meta"):
        if way == "ours":
            model = train_as_ours(model, config.text_config.num_hidden_layers if recomputed is None else recomputed)
        else:
            model = train_as_stock(model, tower_backward=way == "stock")
    layout_device = "cpu" if way == "ours" else "meta"
    batch = make_batch(config, num_tiles, num_tokens, questions, cached, layout_device)
    with _without_values(), FlopCounterMode(display=False) as counter:
        (our_loss if way == "ours" else stock_loss)(model, batch).backward()
    return counter.get_total_flops() / questions


def make_batch(
    config: MllamaConfig, num_tiles: int, num_tokens: int, questions: int, cached: bool, layout_device: str
) -> dict[str, Tensor]:
    """A batch on the meta device; which tiles there are is told where `layout_device` says."""
    vision = config.vision_config
    mask = torch.zeros(questions, 1, 4, dtype=torch.long, device=layout_device)
    mask[:, :, :num_tiles] = 1
    with torch.device("meta"):
        ids = torch.ones(questions, num_tokens, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": ids, "labels": ids}
        batch["cross_attention_mask"] = mask[:, None].expand(-1, num_tokens, -1, -1)
        if cached:
            num_patches = (vision.image_size // vision.patch_size) ** 2 + 1
            shape = (questions * 4, num_patches, config.text_config.hidden_size)
            return batch | {"cross_attention_states": torch.empty(shape, dtype=torch.bfloat16)}
        pixels = torch.empty(1, 1, 4, 3, vision.image_size, vision.image_size, dtype=torch.bfloat16)
        ratio_ids = torch.full((questions, 1), NUM_TILES[num_tiles])
    # Expanded, not copied: that they are equal is all that can be told without pixels.
    pixels = pixels.expand(questions, -1, -1, -1, -1, -1)
    return batch | {"pixel_values": pixels, "aspect_ratio_ids": ratio_ids, "aspect_ratio_mask": mask}


@contextmanager
def _without_values() -> Iterator[None]:
    """The causal mask is left out where nothing is padded, which cannot be asked of tensors without values."""
    with patch.object(masking_utils, "_ignore_causal_mask_sdpa", lambda *_, **__: True):
        yield


def stored_by_real(num_tokens: int) -> StoredBytes:
    return measure_stored_bytes(real_config(), lora(), num_rows=1, num_tokens=num_tokens)


def measure_flops() -> tuple[dict[str, float], dict[str, str]]:
    """The issue's ratios, and a table of TFLOP a sample."""
    stock = {tokens: count("stock", 1, tokens) for tokens in TOKENS}
    ours = {(tiles, tokens): count("ours", tiles, tokens) for tiles in NUM_TILES for tokens in TOKENS}
    stored = {tokens: stored_by_real(tokens) for tokens in TOKENS}
    at_equal = {tokens: stored[tokens].num_recomputed(stored[tokens].budget) for tokens in TOKENS}
    equal = {key: count("ours", *key, recomputed=at_equal[key[1]]) for key in ours}
    questions = count("ours", 4, 64, questions=NUM_QUESTIONS)
    cached = count("ours", 4, 64, cached=True)
    lines = {}
    for tokens in TOKENS:
        lines[f"TFLOP, {tokens} tokens: stock, 1 or 4 tiles"] = _tera(stock[tokens])
        bare = count("stock without the tower's backward", 1, tokens)
        lines[f"TFLOP, {tokens} tokens: stock without the tower's backward"] = _tera(bare)
        for tiles in NUM_TILES:
            key = (tiles, tokens)
            lines[f"TFLOP, {tokens} tokens, {tiles} tile: ours, all text layers recomputed"] = _tera(ours[key])
            name = f"TFLOP, {tokens} tokens, {tiles} tile: ours, {at_equal[tokens]} recomputed (equal memory)"
            lines[name] = _tera(equal[key])
        lines[f"GiB stored, {tokens} tokens: stock"] = f"{stored[tokens].of_stock / GIB:.2f}"
        mine = (stored[tokens].peak(at_equal[tokens]) + stored[tokens].head) / GIB
        lines[f"GiB stored, {tokens} tokens: ours at equal memory, head included"] = f"{mine:.2f}"
    lines["GiB stored in stock's frozen tower, an image"] = f"{stored[256].tower / GIB:.2f}"
    lines[f"TFLOP, 64 tokens, 4 tiles: ours, {NUM_QUESTIONS} questions about one image, each"] = _tera(questions)
    lines["TFLOP, 64 tokens, 4 tiles: ours with cached features"] = _tera(cached)
    values = (
        ours[1, 256] / stock[256],
        ours[1, 512] / stock[512],
        equal[1, 256] / stock[256],
        ours[4, 256] / stock[256],
        questions / stock[64],
        cached / stock[64],
    )
    return {key: round(value, 3) for key, value in zip(KEYS, values, strict=True)}, lines


def _tera(operations: float) -> str:
    return f"{operations / 1e12:.1f}"

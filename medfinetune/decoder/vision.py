"""Mllama's vision tower without its waste: the same features, to rounding, for a fraction of the arithmetic.

Stock transformers encodes four tiles for every image and lets a frozen tower run a backward that nothing needs. Here a
frozen tower runs without a graph; the tiles that only pad an image, which are all alike, are encoded once; the dense
mask over all pairs of tokens is replaced by two attentions without one; and equal images of a batch are encoded once.

Stock's mask keeps padding from padding only. So a token of the image attends to everything, padding too, and a token
of the padding attends to the image's tokens alone. Equal keys that stand `m` times count as one with `log m` added to
its score.
"""

import math
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama.modeling_mllama import MllamaVisionAttention, MllamaVisionModel

from medfinetune.decoder.masks import has_no_values
from medfinetune.distributed import sum_over_processes, world_size

_PAD_TO = 8
"""Stock pads each tile's tokens with zeros to a multiple of this."""


def use_fast_vision(model: nn.Module, enabled: bool = True) -> None:
    """Lets a Mllama's tower encode its images in the fast way, or in the stock way again.

    A tower of which any weight trains keeps its graph and encodes every padded tile, as in stock; so does one whose
    slots of padded tiles have different position embeddings. Calling it again changes nothing.

    On the meta device, where operations are counted, `aspect_ratio_mask` has to be on the CPU: the layout follows from
    it. Padded tiles are taken for alike there, and images for equal where `pixel_values` was expanded from one row.

    Args:
        model: A Mllama, with or without adapters.
        enabled: Whether the fast way is taken.

    Raises:
        ValueError: The model has no vision tower.
    """
    tower = next((module for module in model.modules() if isinstance(module, MllamaVisionModel)), None)
    if tower is None:
        raise ValueError(f"{type(model).__name__} has no Mllama vision tower")
    attentions = [module for module in tower.modules() if isinstance(module, MllamaVisionAttention)]
    for module, forward in [(tower, _encode_images), *((attention, _attend) for attention in attentions)]:
        if enabled:
            module.forward = MethodType(forward, module)
        else:
            module.__dict__.pop("forward", None)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the tokens of an image stand in its sequence: its own tiles, the tiles that pad it, what fills up tiles.

    Tiles that pad an image stand there once where they are `alike`. Of the tokens that fill up tiles, the local layers
    see one for all, and the global layers one for each tile, because they get the tile's embedding before.

    Attributes:
        num_tiles: Tiles of the image.
        num_slots: Tiles that stock computes.
        num_patches: Tokens of a tile.
        alike: Whether the padded tiles are equal in pixels and embeddings.
    """

    num_tiles: int
    num_slots: int
    num_patches: int
    alike: bool

    @property
    def num_fill(self) -> int:
        return -self.num_patches % _PAD_TO

    @property
    def num_padded(self) -> int:
        return self.num_slots - self.num_tiles

    @property
    def num_shown(self) -> int:
        """Tiles that are computed."""
        return self.num_tiles + (min(self.num_padded, 1) if self.alike else self.num_padded)

    def counts(self, is_global: bool) -> list[int]:
        """How often stock's sequence has each of the padding's tokens."""
        tiles = self.num_shown - self.num_tiles
        times = self.num_padded if self.alike else 1
        fill = [self.num_fill] * self.num_tiles + [self.num_fill * times] * tiles
        if not self.num_fill:
            fill = []
        elif not is_global:
            fill = [sum(fill)]
        return [times] * tiles * self.num_patches + fill


@dataclass(frozen=True, slots=True)
class _Split:
    """Stands in for stock's mask: how many tokens are the image's, and the logarithm of how often the others stand."""

    num_real: int
    log_counts: Tensor


def _encode_images(
    tower: Any, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor, **_: Any
) -> BaseModelOutput:
    """As `MllamaVisionModel.forward`; the features of padded tiles stand in all their slots."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in tower.parameters())):
        shape = pixel_values.shape[:2]
        images = pixel_values.flatten(0, 1).to(tower.patch_embedding.weight.device, tower.dtype)
        ratio_ids = aspect_ratio_ids.reshape(-1)
        num_tiles = aspect_ratio_mask.reshape(len(images), -1).sum(dim=1).tolist()
        firsts, places = _distinct(images, ratio_ids, num_tiles)
        features: dict[int, Tensor] = {}
        unneeded: Tensor | float = 0.0
        for count in _counts_of_all({num_tiles[i] for i in firsts}, tower, images):
            rows = [i for i in firsts if num_tiles[i] == count]
            if rows:
                features |= zip(rows, _encode(tower, images[rows], ratio_ids[rows], count), strict=True)
            else:
                # In the graph, if there is one: the backward too runs equally often in all processes.
                unneeded = unneeded + 0 * _encode(tower, torch.zeros_like(images[:1]), 0 * ratio_ids[:1], count).sum()
        together = torch.stack([features[i] for i in places]) + unneeded
        return BaseModelOutput(last_hidden_state=together.unflatten(0, shape))


def _counts_of_all(counts: set[int], tower: nn.Module, images: Tensor) -> list[int]:
    """The numbers of tiles that images have, in all processes where weights are shared out among them.

    Under ZeRO-3 each call of a module brings its weights from all processes: one that called a layer less often than
    the others would let them wait for ever.
    """
    if world_size() == 1 or not all(hasattr(parameter, "ds_id") for parameter in tower.parameters()):
        return sorted(counts)
    present = torch.zeros(images.shape[1] + 1, device=images.device)
    present[list(counts)] = 1
    return sum_over_processes(present).nonzero().flatten().tolist()


def _distinct(images: Tensor, ratio_ids: Tensor, num_tiles: list[int]) -> tuple[list[int], list[int]]:
    """The first of each set of equal images, and for each image the first that equals it.

    Without values there are no pixels to compare: images of one tensor that was expanded are equal, others differ.
    """
    if has_no_values(images):
        expanded = images.stride(0) == 0
        return ([0], [0] * len(images)) if expanded else (list(range(len(images))), list(range(len(images))))
    # Sums tell most apart at once; pixels are compared only where those agree.
    sums = images.flatten(1).sum(dim=1, dtype=torch.float64).tolist()
    firsts: dict[tuple, list[int]] = {}
    places = []
    for i, key in enumerate(zip(sums, ratio_ids.tolist(), num_tiles, strict=True)):
        same = firsts.setdefault(key, [])
        found = next((first for first in same if torch.equal(images[first], images[i])), None)
        if found is None:
            same.append(i)
        places.append(i if found is None else found)
    return sorted(set(places)), places


def _encode(tower: Any, images: Tensor, ratio_ids: Tensor, num_tiles: int) -> Tensor:
    """Features of images that all have `num_tiles` tiles.

    Args:
        images: `(B, slots, 3, H, W)`.
        ratio_ids: `(B,)`.

    Returns:
        `(B, slots, patches, features)`, as stock's `last_hidden_state`.
    """
    size, num_slots = images.shape[:2]
    num_patches = tower.num_patches
    # The modules themselves are called, on zeros: under ZeRO-3 that is what brings their weights.
    nothing = images.new_zeros((size, num_slots, num_patches, tower.hidden_size))
    before = tower.pre_tile_positional_embedding(nothing[:, :, :1], ratio_ids)
    position = tower.gated_positional_embedding(nothing, ratio_ids)
    after = tower.post_tile_positional_embedding(nothing[:, :, :1], ratio_ids)
    # A tower that trains has a gradient for the embedding of every slot.
    alike = not torch.is_grad_enabled() and all(
        _alike(slots[:, num_tiles:]) for slots in (images, before, position, after)
    )
    layout = _Layout(num_tiles, num_slots, num_patches, alike)
    shown = layout.num_shown
    patches = tower.patch_embedding(images[:, :shown].flatten(0, 1)).flatten(2).transpose(1, 2)
    hidden = patches.unflatten(0, (size, shown)) + before[:, :shown]
    hidden = tower.apply_class_embedding(hidden.flatten(0, 1)).unflatten(0, (size, shown)) + position[:, :shown]
    hidden = tower.layernorm_pre(hidden).flatten(1, 2)
    if layout.num_fill:
        hidden = F.pad(hidden, (0, 0, 0, 1))
    split = _split(layout, False, hidden)
    kept: dict[int, Tensor] = {}
    wanted = [i % len(tower.transformer.layers) for i in tower.intermediate_layers_indices]
    for i, layer in enumerate(tower.transformer.layers):
        hidden = layer(hidden, attention_mask=split)
        if i in wanted:
            kept[i] = _in_slots(hidden, layout)
    hidden = tower.layernorm_post(hidden)
    tiles, fill = hidden[:, : shown * num_patches], hidden[:, shown * num_patches :]
    tiles = tiles.unflatten(1, (shown, num_patches)) + after[:, :shown]
    hidden = tiles.flatten(1, 2)
    if layout.num_fill:
        hidden = torch.cat([hidden, fill + after[:, :shown, 0]], dim=1)
    split = _split(layout, True, hidden)
    for layer in tower.global_transformer.layers:
        hidden = layer(hidden, attention_mask=split)
    # Stock interleaves the intermediate states feature by feature.
    middle = torch.stack([kept[i] for i in wanted], dim=-1).flatten(-2)
    return torch.cat([_in_slots(hidden, layout), middle], dim=-1)


def _alike(slots: Tensor) -> bool:
    """Whether all of dimension 1 are equal; not looked at without data, where only shapes and operations count."""
    return has_no_values(slots) or slots.shape[1] < 2 or torch.equal(slots[:, 1:], slots[:, :1].expand_as(slots[:, 1:]))


def _split(layout: _Layout, is_global: bool, hidden: Tensor) -> _Split:
    log_counts = [math.log(count) for count in layout.counts(is_global)]
    return _Split(layout.num_tiles * layout.num_patches, hidden.new_tensor(log_counts))


def _in_slots(hidden: Tensor, layout: _Layout) -> Tensor:
    tiles = hidden[:, : layout.num_shown * layout.num_patches].unflatten(1, (layout.num_shown, layout.num_patches))
    repeated = layout.num_slots - layout.num_shown
    return torch.cat([tiles, tiles[:, -1:].expand(-1, repeated, -1, -1)], dim=1) if repeated else tiles


def _attend(attention: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> tuple[Tensor, None]:
    """As `MllamaVisionAttention.forward`: the image's tokens attend to all, those of the padding to the image's."""
    if not isinstance(attention_mask, _Split):
        return type(attention).forward(attention, hidden_states, attention_mask=attention_mask, **kwargs)
    num_real = attention_mask.num_real
    query, key, value = (
        projection(hidden_states).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = F.pad(attention_mask.log_counts.to(query.dtype), (num_real, 0))
    attended = F.scaled_dot_product_attention(
        query[:, :, :num_real],
        key,
        value,
        attn_mask=scores.expand(1, 1, num_real, -1) if len(scores) > num_real else None,
        scale=attention.scaling,
    )
    if len(scores) > num_real:
        padding = F.scaled_dot_product_attention(
            query[:, :, num_real:], key[:, :, :num_real], value[:, :, :num_real], scale=attention.scaling
        )
        attended = torch.cat([attended, padding], dim=2)
    return attention.o_proj(attended.transpose(1, 2).flatten(2)), None

"""Which text sees which tile: the collator's mask, and what the cross-attention layers make of it.

A token that no image stands before sees no tile by the mask. Stock transformers then lets it attend to all slots of
the batch, so that the row's result depends on its neighbours. Here it attends to the slots of the row's own images, as
it does alone. Meta's reference lets it attend to nothing (`reference_attention_mask`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def cross_attention_mask(
    input_ids: Tensor, attention_mask: Tensor, aspect_ratio_mask: Tensor, image_token: int
) -> Tensor:
    """Which token sees which tile: each image from its mark to the next image's, or to the end.

    Images that follow each other directly are seen together. Built from the final, padded ids, so that it always has
    their width.

    Args:
        input_ids: `(B, T)`.
        attention_mask: `(B, T)`, 0 on padding.
        aspect_ratio_mask: `(B, N, 4)`, 1 on tiles that exist.
        image_token: Id of `<|image|>`.

    Returns:
        `(B, T, N, 4)`, 1 where a token sees a tile.
    """
    batch, length = input_ids.shape
    mask = torch.zeros(batch, length, *aspect_ratio_mask.shape[1:], dtype=torch.long)
    for row in range(batch):
        marks = (input_ids[row] == image_token).nonzero().flatten().tolist()
        end = length
        for image in reversed(range(len(marks))):
            if image + 1 < len(marks) and marks[image + 1] != marks[image] + 1:
                end = marks[image + 1]
            mask[row, marks[image] : end, image] = aspect_ratio_mask[row, image]
    return mask * attention_mask[:, :, None, None]


@dataclass(frozen=True, slots=True)
class ShownTiles:
    """The tiles of a batch that become keys of the cross-attention.

    Attributes:
        slots: `(B, K)`, places among the row's `N * 4` tiles.
        counts: `(B, K)`, how many of stock's tiles each stands for; 0 where a row has fewer than K.
    """

    slots: Tensor
    counts: Tensor


def all_tiles(mask: Tensor) -> ShownTiles:
    """Every slot, as stock has them.

    Args:
        mask: `(B, T, N, 4)`, 1 where a token sees a tile.
    """
    slots = torch.arange(mask.shape[2] * mask.shape[3], device=mask.device).expand(len(mask), -1)
    return ShownTiles(slots, torch.ones_like(slots))


def tiles_that_matter(mask: Tensor, reference: bool) -> ShownTiles:
    """The tiles that exist, and for each image one for all that pad it; by Meta's rule nothing sees those.

    Args:
        mask: `(B, T, N, 4)`, 1 where a token sees a tile.
        reference: Whether Meta's rule holds.
    """
    seen = mask.bool().any(dim=1)
    counts = seen.long()
    if not reference:
        padded = ~seen & seen.any(dim=-1, keepdim=True)
        first = padded & (padded.cumsum(dim=-1) == 1)
        counts = counts + first * padded.sum(dim=-1, keepdim=True)
    counts = counts.flatten(1)
    num_keys = max(1, int((counts > 0).sum(dim=1).max()))
    slots = (counts > 0).int().argsort(dim=1, descending=True, stable=True)[:, :num_keys]
    return ShownTiles(slots, counts.gather(1, slots))


def has_no_values(tensor: Tensor) -> bool:
    """Whether there are only shapes to look at: on the meta device, and where preflight counts."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def padding_is_alike(states: Tensor, mask: Tensor) -> bool:
    """Whether the unseen tiles of each image are equal, so that one can stand for all.

    Args:
        states: `(B, N, 4, patches, features)`.
        mask: `(B, T, N, 4)`, 1 where a token sees a tile.
    """
    if has_no_values(states):
        return True
    seen = mask.bool().any(dim=1).to(states.device)
    last = states[:, :, -1:]
    same = (states == last).flatten(3).all(dim=-1) | seen | ~seen.any(dim=-1, keepdim=True)
    return bool(same.all())


def additive_mask(mask: Tensor, shown: ShownTiles, num_patches: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What is added to the scores of the cross-attention, by row as stock makes it for the row alone.

    Args:
        mask: `(B, T, N, 4)`, 1 where a token sees a tile.
        shown: The tiles that are keys; K of them.
        num_patches: Keys of a tile.
        dtype: Of the scores.

    Returns:
        `(B, 1, T, K * num_patches)`: 0 or the logarithm of how often a tile counts, and the lowest number where it is
        not seen; and `(B, 1, T, 1)`, 1 where a token sees any tile.
    """
    visible = mask.bool().flatten(2)
    sees = visible.any(dim=-1, keepdim=True)
    own = mask.bool().any(dim=1).any(dim=-1, keepdim=True).expand(-1, -1, mask.shape[3]).flatten(1)
    open_slots = torch.where(sees, visible, own[:, None])
    picked = open_slots.gather(2, shown.slots[:, None].expand(-1, mask.shape[1], -1)) & (shown.counts > 0)[:, None]
    weights = shown.counts.clamp(min=1).to(dtype).log()[:, None]
    bias = torch.where(picked, weights, torch.finfo(dtype).min)
    # A row without an image sees nothing at all; its scores must not all be the lowest number.
    bias = torch.where(own.any(dim=1)[:, None, None], bias, 0.0)
    return bias.repeat_interleave(num_patches, dim=2)[:, None], sees[:, None].to(dtype)

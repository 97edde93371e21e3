"""Mllama's images and text brought together so that a row of a batch gets what it gets alone."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer, MllamaModel
from transformers.utils import can_return_tuple

from medfinetune.decoder.masks import additive_mask, all_tiles, padding_is_alike, tiles_that_matter


def mllama_inside(model: nn.Module) -> Any:
    """The `MllamaModel` (tower, projector and text layers) of a model with or without head, adapters or wrappers.

    Raises:
        ValueError: There is none.
    """
    mllama = next((module for module in model.modules() if isinstance(module, MllamaModel)), None)
    if mllama is None:
        raise ValueError(f"{type(model).__name__} has no Mllama inside")
    return mllama


def use_exact_rows(model: nn.Module, reference_attention_mask: bool = False) -> None:
    """Lets each row of a batch pass the cross-attention as it passes alone; calling it again changes the rule.

    Alone, a row without an image skips the cross-attention layers, and tokens before the first image attend to the
    row's own images. Stock lets both attend to whatever stands in the batch.

    Args:
        model: A Mllama, with or without adapters.
        reference_attention_mask: Whether tokens before the first image see nothing, as in Meta's reference.
    """
    mllama = mllama_inside(model)
    mllama.reference_attention_mask = reference_attention_mask
    mllama.forward = MethodType(_forward, mllama)
    for layer in mllama.modules():
        if isinstance(layer, MllamaCrossAttentionDecoderLayer):
            if not hasattr(layer, "reference_attention_mask"):
                layer.register_forward_hook(_pass_by, with_kwargs=True)
            layer.reference_attention_mask = reference_attention_mask


def _pass_by(layer: Any, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
    """Leaves rows without an image as they were, and by Meta's rule also tokens before the first image."""
    sees = kwargs.get("full_text_row_masked_out_mask")  # (B, 1, T, 1), 1 where a token sees any tile
    if sees is None:
        return None
    hidden_states = args[0] if args else kwargs["hidden_states"]
    passes = sees[:, 0] > 0 if layer.reference_attention_mask else sees.any(dim=2)
    return torch.where(passes.to(hidden_states.device), output, hidden_states)


@can_return_tuple
def _forward(
    mllama: Any,
    input_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    aspect_ratio_mask: Tensor | None = None,
    aspect_ratio_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cross_attention_mask: Tensor | None = None,
    cross_attention_states: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> BaseModelOutputWithPast:
    """As `MllamaModel.forward`, with the masks of `masks.py` and, without a cache of keys, without needless tiles."""
    if pixel_values is not None and cross_attention_states is not None:
        raise ValueError("give pixel_values or cross_attention_states, not both")
    if pixel_values is not None and cross_attention_mask is None:
        raise ValueError("pixel_values need a cross_attention_mask: without one, the attention to images is causal")
    shown = sees = None
    if cross_attention_mask is not None:
        length = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        if cross_attention_mask.shape[1] != length:
            past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
            cross_attention_mask = cross_attention_mask[:, past : past + length]
        shown = all_tiles(cross_attention_mask)
    if pixel_values is not None:
        # Later steps of a generation build their masks for all slots.
        keys_are_kept = use_cache is not False or past_key_values is not None
        cross_attention_states, shown = _image_states(
            mllama, pixel_values, aspect_ratio_ids, aspect_ratio_mask, cross_attention_mask, keys_are_kept
        )
    if shown is not None:
        cross_attention_mask, sees = additive_mask(
            cross_attention_mask, shown, mllama.vision_model.num_patches, mllama.dtype
        )
        if cross_attention_states is not None:
            # Which tiles there are may be told on the CPU while the model itself is on the meta device.
            cross_attention_mask, sees = (t.to(cross_attention_states.device) for t in (cross_attention_mask, sees))
    outputs = mllama.language_model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        cross_attention_states=cross_attention_states,
        cross_attention_mask=cross_attention_mask,
        full_text_row_masked_out_mask=sees,
        past_key_values=past_key_values,
        use_cache=use_cache,
        inputs_embeds=inputs_embeds,
        **kwargs,
    )
    return BaseModelOutputWithPast(
        last_hidden_state=outputs.last_hidden_state,
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def _image_states(
    mllama: Any, pixel_values: Tensor, ratio_ids: Tensor, tile_mask: Tensor, mask: Tensor, keys_are_kept: bool
) -> tuple[Tensor, Any]:
    """The projected features of the tiles that are keys, `(B, K * patches, hidden)`, and which tiles those are."""
    cache = getattr(mllama, "vision_cache", None)
    if cache is not None:
        states = cache.projected(mllama, pixel_values, ratio_ids, tile_mask)
    else:
        states = mllama.vision_model(
            pixel_values=pixel_values, aspect_ratio_ids=ratio_ids, aspect_ratio_mask=tile_mask
        ).last_hidden_state
    shown = all_tiles(mask)
    reference = mllama.reference_attention_mask
    # A tower that trains has gradients for padded tiles of its own; by Meta's rule nothing looks at them.
    one_for_all = reference or (not states.requires_grad and padding_is_alike(states, mask))
    if not keys_are_kept and not mask.is_meta and one_for_all:
        shown = tiles_that_matter(mask, reference)
        slots = shown.slots.to(states.device)
        states = states.flatten(1, 2)[torch.arange(len(slots), device=states.device)[:, None], slots]
    else:
        states = states.flatten(1, 2)
    if cache is None:
        states = mllama.multi_modal_projector(states)
    return states.flatten(1, 2), shown

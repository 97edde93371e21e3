"""Recomputes only as many text layers in the backward as a bound on memory asks for.

A layer that is recomputed (checkpointed) stores its input alone, and costs one more forward. Which layers are, says
transformers' own flag on each of them, so that adapters, several processes and generation work as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import MllamaConfig, MllamaForConditionalGeneration, TrainerCallback
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.models.mllama.modeling_mllama import (
    MllamaCrossAttentionDecoderLayer,
    MllamaSelfAttentionDecoderLayer,
    MllamaTextModel,
)

from medfinetune.decoder.head import BYTES_A_SCORE, CHUNK_POSITIONS

GIB = 2**30


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """What one batch stores for its backward, in bytes.

    Attributes:
        layers: For each text layer, where it is not recomputed.
        layer_input: For each text layer, where it is.
        tower: Of stock's frozen tower, for all images of the batch; ours stores nothing.
        head: That the head takes while it works on some positions, when all layers are stored.
    """

    layers: tuple[int, ...]
    layer_input: int
    tower: int
    head: int = 0

    def peak(self, num_recomputed: int) -> int:
        """Bytes of the text layers when the first `num_recomputed` of them are recomputed."""
        inputs = num_recomputed * self.layer_input
        # The backward has freed the later layers when it comes to those that are recomputed, one at a time.
        return inputs + max(sum(self.layers[num_recomputed:]), *self.layers[:num_recomputed], 0)

    @property
    def of_stock(self) -> int:
        """Bytes that stock stores, with every text layer recomputed."""
        return self.tower + self.peak(len(self.layers))

    @property
    def budget(self) -> int:
        """Bytes that the text layers may store for the peak to be no higher than stock's, whose head takes little."""
        return self.of_stock - self.head

    def num_recomputed(self, bound: int) -> int:
        """The fewest layers whose recomputing brings the text layers under `bound` bytes; all where none suffices."""
        enough = (number for number in range(len(self.layers)) if self.peak(number) <= bound)
        return next(enough, len(self.layers))


def measure_stored_bytes(
    config: MllamaConfig,
    lora: LoraConfig | None,
    num_rows: int,
    num_tokens: int,
    num_images: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    autocast: bool = True,
) -> StoredBytes:
    """Runs one layer of each kind, and stock's tower, on tensors without data, and adds up what autograd keeps.

    Attention is counted as fused kernels store it. A tower that trains is not counted.

    Args:
        config: The model's shape.
        lora: The adapters that train; the whole text model and the projector where left out.
        num_rows: Rows of a batch.
        num_tokens: Tokens of each row.
        num_images: Images of each row.
        dtype: Of the weights.
        autocast: Whether the forward runs under autocast to bfloat16.
    """
    without_data = FakeTensorMode()
    model = _one_layer_of_each(config, lora, dtype, without_data)
    text: Any = next(module for module in model.modules() if isinstance(module, MllamaTextModel))
    mllama = model.get_base_model() if lora else model
    vision, hidden_size = config.vision_config, config.text_config.hidden_size
    num_patches = (vision.image_size // vision.patch_size) ** 2 + 1
    with without_data, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = torch.empty(num_rows, num_tokens, hidden_size, dtype=dtype, requires_grad=True)
        num_seen = num_images * vision.max_num_tiles * num_patches
        states = torch.empty(num_rows, num_seen, hidden_size, dtype=dtype, requires_grad=lora is None)
        mask = torch.empty(num_rows, 1, num_tokens, num_seen, dtype=dtype)
        rotation = torch.empty(num_rows, num_tokens, text.layers[0].self_attn.head_dim, dtype=dtype)
        rows_seen = torch.empty(num_rows, 1, num_tokens, 1, dtype=dtype)
        shared = [hidden, states, mask, rotation, rows_seen]
        kinds = {}
        for layer in text.layers:
            # What the layers share, and a layer's own input, is there whether they are recomputed or not.
            kinds[type(layer)] = saved_bytes(
                lambda layer=layer: layer(
                    hidden,
                    cross_attention_states=states,
                    cross_attention_mask=mask,
                    attention_mask=None,
                    full_text_row_masked_out_mask=rows_seen,
                    position_embeddings=(rotation, rotation),
                ),
                without=[*layer.parameters(), *shared],
            )
        tower = _tower_bytes(mllama.model.vision_model, num_rows, num_images, dtype) if num_images else 0
    layer_input = hidden.numel() * hidden.element_size()
    is_cross = [i in config.text_config.cross_attention_layers for i in range(config.text_config.num_hidden_layers)]
    cross, own = kinds[MllamaCrossAttentionDecoderLayer], kinds[MllamaSelfAttentionDecoderLayer]
    # Without an image, cross-attention layers are passed over.
    cross = cross if num_images else 0
    layers = tuple((cross if flag else own) + layer_input for flag in is_cross)
    head = min(num_rows * num_tokens, CHUNK_POSITIONS) * config.text_config.vocab_size * BYTES_A_SCORE
    return StoredBytes(layers, layer_input, tower, head)


def saved_bytes(work: Any, without: list[Tensor]) -> int:
    """Bytes of the tensors that `work` keeps for its backward, each storage once.

    Args:
        work: A function without arguments.
        without: Tensors that are there anyway, as weights.
    """
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    for tensor in without:
        kept.pop(tensor.untyped_storage()._cdata, None)
    del result
    return sum(storage.nbytes() for storage in kept.values())


def recompute_layers(model: nn.Module, num_recomputed: int) -> None:
    """Has the first `num_recomputed` text layers recomputed in the backward, and no other module.

    Args:
        model: A Mllama, with or without adapters.
        num_recomputed: From 0 to the number of text layers.
    """
    layers = next(module for module in model.modules() if isinstance(module, MllamaTextModel)).layers
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    for layer in layers[:num_recomputed]:
        layer.gradient_checkpointing = True
        if not hasattr(layer, "_gradient_checkpointing_func"):
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


class RecomputeLayers(TrainerCallback):
    """Sets the layers at the start of training, after the Trainer has had every one recomputed."""

    def __init__(self, num_recomputed: int):
        """
        Args:
            num_recomputed: How many text layers are recomputed.
        """
        self.num_recomputed = num_recomputed

    def on_train_begin(self, *_: Any, model: nn.Module | None = None, **__: Any) -> None:
        if model is not None:
            recompute_layers(model, self.num_recomputed)


def _one_layer_of_each(
    config: MllamaConfig, lora: LoraConfig | None, dtype: torch.dtype, without_data: FakeTensorMode
) -> Any:
    """The model with one text layer of each kind, as it trains."""
    small = MllamaConfig.from_dict(config.to_dict())
    small.text_config.num_hidden_layers, small.text_config.cross_attention_layers = 2, [1]
    with without_zero3(), torch.device("meta"):
        model: Any = MllamaForConditionalGeneration(small).to(dtype)
        model.model.vision_model.requires_grad_(False)
        model = get_peft_model(model, lora) if lora else model
    # PEFT cannot put adapters on tensors of this mode, and the meta device knows no autocast and no fused attention.
    with without_data:
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    data = torch.empty(tensor.shape, dtype=tensor.dtype)
                    module._parameters[name] = nn.Parameter(data, tensor.requires_grad)
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
    return model.train()


@contextmanager
def without_zero3() -> Iterator[None]:
    """Models are built whole, although DeepSpeed's ZeRO-3 is on."""
    config = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config


def _tower_bytes(tower: Any, num_rows: int, num_images: int, dtype: torch.dtype) -> int:
    side, slots = tower.image_size, tower.max_num_tiles
    pixels = torch.empty(num_rows, num_images, slots, 3, side, side, dtype=dtype)
    ids = torch.ones(num_rows, num_images, dtype=torch.long)
    mask = torch.ones(num_rows, num_images, slots, dtype=torch.long)
    # As PEFT and the Trainer do it for checkpointing: the first output asks for a gradient, and all later ones too.
    hook = tower.patch_embedding.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    size = saved_bytes(lambda: tower(pixels, ids, mask).last_hidden_state, [*tower.parameters(), pixels])
    hook.remove()
    return size

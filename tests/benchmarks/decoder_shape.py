"""The Mllamas that the decoder's benchmark counts and times, and how stock and ours train them.

Nothing here needs TRL, so that it runs where only torch, transformers and PEFT are.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.modeling_mllama import MllamaRotaryEmbedding

from medfinetune.decoder.cross_attention import use_exact_rows
from medfinetune.decoder.head import score_labels
from medfinetune.decoder.recompute import recompute_layers
from medfinetune.decoder.vision import use_fast_vision

NUM_TILES = {1: 1, 4: 6}
"""Tiles of an image, and the id of their arrangement."""


def real_config() -> MllamaConfig:
    """The published 11B; transformers' defaults are its, but for the side of a tile."""
    config = MllamaConfig()
    config.vision_config.image_size = 560
    return config


def small_config() -> MllamaConfig:
    """Every width and the number of tokens an eighth, the number of layers a quarter: a step of a second on a CPU."""
    return MllamaConfig(
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 640,
            "attention_heads": 2,
            "num_hidden_layers": 8,
            "num_global_layers": 2,
            "intermediate_layers_indices": [0, 1, 3, 5, 7],
            "vision_output_dim": 960,
            "image_size": 196,
        },
        text_config={
            "vocab_size": 16_032,
            "hidden_size": 512,
            "intermediate_size": 1_792,
            "num_hidden_layers": 10,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "cross_attention_layers": [3, 8],
            "pad_token_id": 0,
        },
    )


def lora() -> LoraConfig:
    """As `MllamaSFTConfig` has it where nothing else is asked for; a test holds them equal."""
    return LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=r".*language_model.*\.(self_attn|cross_attn)\.(q_proj|k_proj|v_proj|o_proj)",
        task_type="CAUSAL_LM",
    )


def make_model(config: MllamaConfig, device: str, dtype: torch.dtype) -> Any:
    """Random weights; the gates of the text's cross-attention open, those of the tiles' positions shut."""
    with torch.device("meta"):
        model = MllamaForConditionalGeneration(config).to(dtype)
    if device == "meta":
        return model
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate") and "cross_attn" not in name:
                parameter.zero_()
            elif "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02)
    # Its frequencies are no weights, and were lost with the meta device.
    model.model.language_model.rotary_emb = MllamaRotaryEmbedding(config.text_config).to(device)
    return model


def train_as_stock(model: Any, tower_backward: bool = True) -> Any:
    """Adapters and checkpointing as TRL's `SFTTrainer` sets them by default.

    Args:
        model: A Mllama.
        tower_backward: Without it, the hook that has the frozen tower run a backward is left out by hand.
    """
    model = get_peft_model(model, lora()).train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    if not tower_backward:
        model.disable_input_require_grads()
        model.get_base_model().disable_input_require_grads()
    else:
        model.enable_input_require_grads()
    return model


def train_as_ours(model: Any, num_recomputed: int) -> Any:
    """Adapters, the fast tower, and the first `num_recomputed` text layers recomputed; TRL's hooks are there too."""
    use_fast_vision(model)
    use_exact_rows(model)
    model = get_peft_model(model, lora()).train()
    model.enable_input_require_grads()
    recompute_layers(model, num_recomputed)
    return model


def stock_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, use_cache=False).loss


def our_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean over labelled positions, which alone go through the head; on the meta device all count as labelled."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    mllama = model.get_base_model()
    hidden = mllama.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    targets = batch["labels"][:, 1:]
    labelled = torch.ones_like(targets, dtype=torch.bool) if targets.is_meta else targets != -100
    if targets.is_meta:
        hidden, targets = hidden.flatten(0, 1), targets.flatten()
    else:
        hidden, targets = hidden[labelled], targets[labelled]
    return -score_labels(mllama.lm_head, hidden, targets)[0].mean()


def make_processor(config: MllamaConfig) -> Any:
    """A processor with the shape's tiles and a small vocabulary of its own, for the real one's is gated."""
    from transformers import AutoTokenizer, MllamaImageProcessorPil, MllamaProcessor

    from medfinetune.tiny import make_tiny_mllama

    side = config.vision_config.image_size
    with tempfile.TemporaryDirectory() as name:
        make_tiny_mllama(Path(name))
        template = MllamaProcessor.get_processor_dict(name)[0]["chat_template"]
        tokenizer = AutoTokenizer.from_pretrained(name)
    images = MllamaImageProcessorPil(size={"height": side, "width": side}, max_image_tiles=4)
    return MllamaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)


def make_rows(config: MllamaConfig, num_tiles: int, count: int) -> list[dict]:
    """Chats with one image of noise each, and an answer that any `max_length` cuts."""
    side = config.vision_config.image_size * (1 if num_tiles == 1 else 2)
    parts = {"user": [{"type": "image"}, {"type": "text", "text": "Why?"}]}
    parts["assistant"] = [{"type": "text", "text": "No fracture of the left knee is seen. " * 100}]
    messages = [{"role": role, "content": content} for role, content in parts.items()]
    rows = []
    for i in range(count):
        torch.manual_seed(i)
        pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8)
        rows.append({"id": str(i), "images": [Image.fromarray(pixels.numpy())], "messages": messages})
    return rows

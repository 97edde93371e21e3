"""Tiny SigLIP and Mllama checkpoints with random weights, built offline from configs: for the demo and the tests."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
)
from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

from medfinetune.data.phantom.findings import combinations, report

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
# As Llama 3.2 Vision's own writes turns: a dated system turn where there is no image or where the chat has one, whose
# content must be a string; texts as they are.
_CHAT_TEMPLATE = """{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- set has_system = messages and messages[0].role == "system" %}
{%- set turns = messages[1:] if has_system else messages %}
{%- set pictures = namespace(any=false) %}
{%- for turn in turns if turn.content is not string %}{% for part in turn.content if part.type == "image" %}
{%- set pictures.any = true %}{% endfor %}{% endfor %}
{%- if has_system or not pictures.any %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if has_system %}{{- messages[0].content | trim }}{% endif %}
{{- "<|eot_id|>" }}
{%- endif %}
{%- for turn in turns %}
{{- "<|start_header_id|>" + turn.role + "<|end_header_id|>\n\n" }}
{%- if turn.content is string %}{{- turn.content }}
{%- else %}{% for part in turn.content %}
{%- if part.type == "image" %}{{- "<|image|>" }}{% elif part.type == "text" %}{{- part.text }}{% endif %}
{%- endfor %}{% endif %}
{{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{% endif %}"""


def make_tiny_siglip(output_dir: Path, seed: int = 0, image_size_px: int = 48) -> None:
    """Writes a SigLIP of about 0.3 M random parameters with a SentencePiece vocabulary of its own."""
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = _sentencepiece_tokenizer(output_dir)
    torch.manual_seed(seed)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={
            **tower,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "projection_size": 64,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={**tower, "num_hidden_layers": 3, "image_size": image_size_px, "patch_size": 8},
    )
    model = SiglipModel(config)
    with torch.no_grad():
        # Fresh towers give everything nearly one embedding (cosine 0.98 among texts, which are mostly padding), and a
        # contrastive start from there is slow: silent padding and a sharper pooling spread them.
        model.text_model.embeddings.token_embedding.weight[tokenizer.pad_token_id] = 0
        model.vision_model.head.attention.in_proj_weight.mul_(2)
        model.logit_scale.fill_(math.log(20))
        model.logit_bias.fill_(-10.0)
    model.save_pretrained(output_dir)
    size = {"height": image_size_px, "width": image_size_px}
    image_processor = SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True)
    SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(output_dir)


def make_tiny_mllama(output_dir: Path, seed: int = 0, image_size_px: int = 48, patch_size_px: int = 12) -> None:
    """Writes a Mllama of about 0.4 M random parameters with a byte-level vocabulary of its own.

    Its gates are open (a fresh Mllama has them at 0 and cannot see), and like the real one it has an `<|image|>`
    token that stands beyond the rows of `lm_head`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = _bpe_tokenizer()
    image_token_id = tokenizer.convert_tokens_to_ids("<|image|>")
    torch.manual_seed(seed)
    config = MllamaConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "attention_heads": 4,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 192,
            "image_size": image_size_px,
            "patch_size": patch_size_px,
            "max_num_tiles": 4,
            "initializer_range": 0.05,
        },
        text_config={
            "vocab_size": image_token_id,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": [1, 3],
            "max_position_embeddings": 1024,
            "initializer_range": 0.05,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
        image_token_index=image_token_id,
    )
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate", "gate_attn", "gate_ffn", ".gate")):
                parameter.fill_(0.7)
            if "gated_positional_embedding" in name and name.endswith(".embedding"):
                parameter.normal_(std=0.3)
        _make_padded_tiles_alike(model.model.vision_model)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end_of_text|>")]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(output_dir)
    size = {"height": image_size_px, "width": image_size_px}
    image_processor = MllamaImageProcessorPil(size=size, max_image_tiles=4)
    processor = MllamaProcessor(image_processor, tokenizer, chat_template=_CHAT_TEMPLATE)
    processor.save_pretrained(output_dir)


def _make_padded_tiles_alike(tower: MllamaVisionModel) -> None:
    """Slots of tiles that only pad an image get no embedding: `decoder/vision.py` then encodes them once."""
    position = tower.gated_positional_embedding.tile_embedding.weight
    tables = [position, tower.pre_tile_positional_embedding.embedding.weight]
    tables.append(tower.post_tile_positional_embedding.embedding.weight)
    # Id 0 stands for no image, which is taken as one empty tile.
    arrangements = [(1, 1), *get_all_supported_aspect_ratios(tower.max_num_tiles)]
    for table in tables:
        for ratio_id, (width, height) in enumerate(arrangements):
            table[ratio_id].view(tower.max_num_tiles, -1)[width * height :] = 0


def _corpus() -> list[str]:
    rng = np.random.default_rng(0)
    texts = [report(findings, language, rng) for findings in combinations(rng)[:600] for language in ("en", "zh")]
    return [*texts, *(chr(code) for code in range(33, 127))]


def _sentencepiece_tokenizer(output_dir: Path) -> SiglipTokenizer:
    """Digits and Chinese characters are pieces of their own; what was never seen falls back to bytes."""
    import sentencepiece  # only here: a tiny Mllama needs none

    table = str.maketrans("", "", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    lines = [line for line in (text.lower().translate(table) for text in _corpus()) if line]
    chinese = sorted({character for line in lines for character in line if "一" <= character <= "鿿"})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        user_defined_symbols=chinese,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=0,
        num_threads=1,
        minloglevel=2,
    )
    path = output_dir / "spiece.model"
    path.write_bytes(model.getvalue())
    return SiglipTokenizer(str(path), model_max_length=64)


def _bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Split as Llama 3 splits: with GPT-2's pattern, the prompt's ids are no prefix of the whole chat's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=768, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([*_SPECIAL_TOKENS, "<|image|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )

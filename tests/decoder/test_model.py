import pytest
import torch

from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import describe_parameters, load_decoder
from medfinetune.errors import InputError


def test_parameters_are_counted_without_weights(tmp_path):
    args = MllamaSFTConfig(output_dir=str(tmp_path), use_peft=True, lora_r=16, use_cpu=True, bf16=False)
    said = describe_parameters(args)
    # 40 layers of 4 projections: self-attention 4096 -> 4096/1024/1024/4096, cross-attention alike.
    trained = 40 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert said.startswith(f"{trained:,} of ")
    assert "10,6" in said


def test_errors(tmp_path, tiny_siglip):
    with pytest.raises(InputError, match="holds no checkpoint that can be read"):
        load_decoder(str(tmp_path))
    with pytest.raises(InputError, match="holds a model of type siglip, not mllama"):
        load_decoder(str(tiny_siglip))
    with pytest.raises(InputError, match=r"gated model `hf auth login`"):
        load_decoder("meta-llama/Llama-3.2-11B-Vision-Instruct")


def test_dtype(tiny_mllama):
    assert load_decoder(str(tiny_mllama), dtype="bfloat16")[0].dtype == torch.bfloat16

"""What makes an index of another encoder or of other data."""

import json
import shutil

import pytest
import safetensors.torch

from medfinetune.errors import InputError
from medfinetune.inference.fingerprint import data_hash, decoder_hash, encoder_hash


@pytest.fixture
def copy(tiny_siglip, tmp_path):
    return shutil.copytree(tiny_siglip, tmp_path / "copy")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_same_encoder_elsewhere_is_the_same(tiny_siglip, copy):
    change(copy / "config.json", transformers_version="9.9")
    (copy / "trainer_state.json").write_text("{}")
    assert encoder_hash(str(copy)) == encoder_hash(str(tiny_siglip))


def test_other_weights_pixels_or_words_are_another_encoder(tiny_siglip, copy):
    before = encoder_hash(str(tiny_siglip))
    weights = safetensors.torch.load_file(copy / "model.safetensors")
    weights["logit_bias"] += 1
    safetensors.torch.save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert encoder_hash(str(copy)) != before
    shutil.copy(tiny_siglip / "model.safetensors", copy)
    assert encoder_hash(str(copy)) == before
    processor = next(path for path in copy.glob("*processor_config.json"))
    change(processor, image_mean=[0.4, 0.5, 0.5])
    assert encoder_hash(str(copy)) != before
    shutil.copy(tiny_siglip / processor.name, copy)
    change(copy / "tokenizer_config.json", model_max_length=32)
    assert encoder_hash(str(copy)) != before


def test_what_decides_a_text_makes_another_decoder(tiny_mllama, tmp_path):
    copy = shutil.copytree(tiny_mllama, tmp_path / "mllama")
    before = decoder_hash(str(tiny_mllama))
    assert decoder_hash(str(copy)) == before
    change(copy / "generation_config.json", repetition_penalty=1.5)
    assert decoder_hash(str(copy)) != before
    shutil.copy(tiny_mllama / "generation_config.json", copy)
    template = next(copy.glob("chat_template.*"))
    template.write_text(template.read_text() + " ")
    assert decoder_hash(str(copy)) != before
    shutil.copy(tiny_mllama / template.name, copy)
    assert decoder_hash(str(copy)) == before


def test_an_adapter_counts_with_its_base(tiny_siglip, copy, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    safetensors.torch.save_file({}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_siglip)}))
    before = encoder_hash(str(adapter))
    change(adapter / "adapter_config.json", base_model_name_or_path=str(copy))
    assert encoder_hash(str(adapter)) == before
    change(copy / "tokenizer_config.json", model_max_length=32)
    assert encoder_hash(str(adapter)) != before


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no weights in safetensors"):
        encoder_hash(str(tmp_path))
    with pytest.raises(InputError, match=r"all_med_pairs.parquet: no such file; recipes/prepare.py makes it"):
        data_hash(tmp_path)


def test_other_pairs_are_other_data(tmp_path):
    (tmp_path / "all_med_pairs.parquet").write_bytes(b"one")
    before = data_hash(tmp_path)
    (tmp_path / "all_med_pairs.parquet").write_bytes(b"two")
    assert data_hash(tmp_path) != before

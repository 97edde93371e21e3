import json
import re

import pytest
import torch
from peft.tuners.lora import LoraLayer, LoraModel
from safetensors.torch import load_file, save_file
from transformers import MllamaForConditionalGeneration

from medfinetune.data.load import load_chats
from medfinetune.decoder import merge
from medfinetune.decoder.merge import TOLERANCES, merge_adapter
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.errors import InputError
from tests.decoder.test_trainer import config


@pytest.fixture
def chats(phantom_dir):
    return load_chats(phantom_dir / "data", "train").select(range(16))


def adapter(tmp_path, tiny_mllama, chats, **changes):
    model, processor = load_decoder(str(tiny_mllama))
    args = config(tmp_path, use_peft=True, lora_dropout=0.0, max_steps=4, **changes)
    trainer = MllamaSFTTrainer(model, args, chats, None, processor)
    trainer.train()
    trainer.save_model()
    return args.output_dir


@pytest.mark.parametrize(
    "changes", [{}, {"lora_use_dora": True, "lora_use_rslora": True, "lora_r": 4}], ids=["", "dora"]
)
def test_merged_model_says_what_the_adapter_says(tmp_path, tiny_mllama, chats, changes):
    folder = adapter(tmp_path, tiny_mllama, chats, **changes)
    settings = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (settings["use_dora"], settings["use_rslora"]) == (bool(changes), bool(changes))
    report = merge_adapter(folder, tmp_path / "merged", chats, "float32")
    assert report.num_rows == 8
    assert report.difference < TOLERANCES["float32"]
    assert report.effect > 100 * TOLERANCES["float32"]
    assert f"logits differ by {report.difference:.1e}" in str(report)
    _, found = MllamaForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(found.values())
    model, processor = load_decoder(str(tmp_path / "merged"))
    collator, rows = merge.MllamaCollator(processor, 512), [chats[9]]
    expected = merge._logits(load_decoder(folder)[0], collator, rows)
    assert merge._distance(merge._logits(model, collator, rows), expected) < TOLERANCES["float32"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_round_within_their_tolerance(tmp_path, tiny_mllama, chats, dtype):
    report = merge_adapter(adapter(tmp_path, tiny_mllama, chats), tmp_path / "merged", chats, dtype)
    assert TOLERANCES["float32"] < report.difference < TOLERANCES[dtype] < report.effect
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("share", "dtype", "why"),
    [
        (0.0, "float32", "it still says what the base model says"),
        (0.0, "bfloat16", "it still says what the base model says"),
        (0.4, "bfloat16", r"more than 0\.0\d+ is allowed in bfloat16"),
    ],
)
def test_a_merge_that_is_lost_is_not_written(tmp_path, tiny_mllama, chats, monkeypatch, share, dtype, why):
    """After a run so short that the whole adapter does less than rounding may do."""
    folder = adapter(tmp_path, tiny_mllama, chats, learning_rate=1e-4)
    merge_and_unload = LoraModel.merge_and_unload

    def merge_a_share(model):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(share)
        return merge_and_unload(model) if share else model.unload()

    monkeypatch.setattr(LoraModel, "merge_and_unload", merge_a_share)
    with pytest.raises(InputError, match=rf"{why}; nothing was written") as raised:
        merge_adapter(folder, tmp_path / "merged", chats, dtype)
    effect = float(re.search(r"base model alone: ([\de.-]+)\)", str(raised.value))[1])
    assert 1.2 * merge.ROUNDING["bfloat16"] < effect < TOLERANCES["bfloat16"]
    assert not (tmp_path / "merged").exists()
    monkeypatch.undo()
    merge_adapter(folder, tmp_path / "merged", chats, dtype)


def test_an_adapter_that_learned_nothing_is_merged(tmp_path, tiny_mllama, chats):
    report = merge_adapter(adapter(tmp_path, tiny_mllama, chats, learning_rate=0.0), tmp_path / "merged", chats)
    assert (report.difference, report.effect) == (0, 0)


@pytest.mark.parametrize(("free", "moves"), [(0, False), (2**40, True)])
def test_without_room_the_host_merges(monkeypatch, free, moves):
    """There is no accelerator here; one that says how much is free stands for it."""
    model = torch.nn.Linear(8, 8)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (free, free))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    merge._move_where_there_is_room(model)
    assert model.weight.is_meta == moves


def test_an_adapter_that_is_no_number_is_not_merged(tmp_path, tiny_mllama, chats):
    folder = tmp_path / "run"
    adapter(tmp_path, tiny_mllama, chats)
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match="logits differ by nan"):
        merge_adapter(folder, tmp_path / "merged", chats, "float32")


def test_there_must_be_an_adapter(tmp_path, tiny_mllama, chats):
    with pytest.raises(InputError, match="holds no adapter"):
        merge_adapter(tiny_mllama, tmp_path / "merged", chats)

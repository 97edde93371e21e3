"""What the decoder's benchmark counts is what runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trl import SFTConfig, SFTTrainer

from medfinetune.decoder.collator import MllamaCollator
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.decoder.model import load_decoder, lora_config
from medfinetune.decoder.recompute import recompute_layers
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.decoder.vision import use_fast_vision
from tests.benchmarks.decoder_flops import count
from tests.benchmarks.decoder_shape import lora, make_rows, stock_loss

REPO = Path(__file__).parents[2]
NUM_TOKENS = 40


def test_adapters_are_our_default(tmp_path):
    ours = lora_config(MllamaSFTConfig(output_dir=str(tmp_path), use_peft=True, use_cpu=True, bf16=False))
    assert lora().to_dict() == ours.to_dict()


def made(tiny_mllama, num_tiles, questions):
    """The tiny model, and a batch of rows of `NUM_TOKENS` tokens about one image, all labelled."""
    model, processor = load_decoder(str(tiny_mllama))
    row = make_rows(model.config, num_tiles, 1)[0]
    batch = MllamaCollator(processor, NUM_TOKENS)([row] * questions)
    assert batch["input_ids"].shape == (questions, NUM_TOKENS)
    batch["labels"] = torch.ones_like(batch["labels"])
    return model, processor, batch


def counted(work):
    # The CPU's fused attention is not known to the counter; the plain products are, which meta tensors take too.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("num_tiles", "questions", "recomputed"), [(1, 1, 4), (4, 1, 4), (1, 1, 0), (4, 3, 4), (1, 2, 2)]
)
def test_counts_of_ours_are_those_of_real_training(tiny_mllama, tmp_path, num_tiles, questions, recomputed):
    model, processor, batch = made(tiny_mllama, num_tiles, questions)
    config = model.config
    args = MllamaSFTConfig(output_dir=str(tmp_path), use_peft=True, use_cpu=True, bf16=False, dtype="float32")
    rows = Dataset.from_list(make_rows(config, num_tiles, 1))
    trainer = MllamaSFTTrainer(model, args, rows, None, processor)
    trainer.model.train()
    recompute_layers(trainer.model, recomputed)
    real = counted(lambda: trainer.compute_loss(trainer.model, dict(batch)))
    assert count("ours", num_tiles, NUM_TOKENS, config, recomputed, questions) * questions == real


def test_counts_of_ours_with_a_cache_are_those_of_real_training(tiny_mllama, tmp_path):
    model, processor, batch = made(tiny_mllama, 4, 1)
    config = model.config
    with torch.no_grad():
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        features = model.model.vision_model(**{name: batch.pop(name) for name in names}).last_hidden_state
        states = model.model.multi_modal_projector(features).flatten(0, 2)
    batch["cross_attention_states"] = states
    args = MllamaSFTConfig(output_dir=str(tmp_path), use_peft=True, use_cpu=True, bf16=False, dtype="float32")
    trainer = MllamaSFTTrainer(model, args, Dataset.from_list(make_rows(config, 4, 1)), None, processor)
    trainer.model.train()
    recompute_layers(trainer.model, 4)
    real = counted(lambda: trainer.compute_loss(trainer.model, dict(batch)))
    assert count("ours", 4, NUM_TOKENS, config, cached=True) == real


def test_counts_of_stock_are_those_of_trl(tiny_mllama, tmp_path):
    """The adapters, hooks and checkpointing that TRL's trainer sets by default; the head is transformers'."""
    model, processor, batch = made(tiny_mllama, 1, 1)
    config = model.config
    use_fast_vision(model, False)
    args = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        max_steps=1,
        report_to="none",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = make_rows(config, 1, 2)
    collator = MllamaCollator(processor, NUM_TOKENS)
    trainer = SFTTrainer(model, args, collator, Dataset.from_list(rows), processing_class=processor, peft_config=lora())
    trainer.train()  # which sets checkpointing
    trainer.model.train()
    real = counted(lambda: stock_loss(trainer.model, batch))
    assert count("stock", 1, NUM_TOKENS, config) == real
    tower = count("stock", 1, NUM_TOKENS, config) - count("stock without the tower's backward", 1, NUM_TOKENS, config)
    assert tower > 0


WITHOUT_TRL = """
import json, sys
missing = "trl datasets deepspeed bitsandbytes evaluate sacrebleu"
missing += " pandas pyarrow pydantic sentencepiece sklearn pydicom"
for name in missing.split():
    sys.modules[name] = None  # as where it is not installed
import tests.benchmarks.decoder, tests.benchmarks.decoder_gpu
from tests.benchmarks import decoder_time
config = decoder_time.small_config()
config.text_config.num_hidden_layers, config.text_config.cross_attention_layers = 2, [1]
decoder_time.small_config, decoder_time.NUM_TURNS, decoder_time.STEPS_A_TURN = lambda: config, 1, 2
figures, lines = decoder_time.measure_time()
print(json.dumps([figures, lines]))
"""


def test_it_runs_and_says_so_where_trl_is_not():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRL], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    figures, lines = json.loads(done.stdout.splitlines()[-1])
    assert figures["step_time_ratio_1tile"] > 0
    assert figures["frozen_saved_bytes"] == 0
    assert lines["seconds: of what"] == "model, collator, AdamW: no TRL"


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, str(REPO / "tests" / "benchmarks" / "decoder.py"), "--gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "not run: torch sees no CUDA device" in done.stdout
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {None}

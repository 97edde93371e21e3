"""Every decoder recipe trains the tiny model with its own settings; only model, data, precision and length differ."""

import json
import math
import subprocess

import pytest
import yaml

from tests.recipes import test_training
from tests.recipes.test_training import LAUNCH, ROOT, options, run_here

configs = test_training.configs
pytestmark = pytest.mark.slow


def tiny_words(configs, recipe, output_dir, **more):
    values = yaml.safe_load(configs["decoder"].read_text())
    changes = {key: values[key] for key in ("model_name_or_path", "data_dir")}
    changes |= {"model_revision": "null", "output_dir": output_dir, "dtype": "float32", "bf16": False, "max_steps": 2}
    changes |= {"eval_steps": 2, "logging_steps": 1, "dataloader_num_workers": 0}
    return ["--config", ROOT / "recipes" / "decoder" / f"llama32_11b_{recipe}.yaml", *options(changes | more)]


def learned(folder, file):
    assert (folder / file).is_file()
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert any("eval_perplexity" in line for line in history)


@pytest.mark.parametrize("recipe", ["qlora", "int8"])
def test_quantised(configs, tmp_path, monkeypatch, recipe):
    pytest.importorskip("bitsandbytes")
    assert run_here(monkeypatch, "decoder", *tiny_words(configs, recipe, tmp_path / "run", use_cpu=True)) == 0
    learned(tmp_path / "run", "adapter_model.safetensors")


@pytest.mark.parametrize("recipe", ["lora_2gpu", "lora_zero3", "full_zero3", "full_zero3_offload"])
def test_two_processes(configs, tmp_path, recipe):
    more = {}
    if "zero3" in recipe:
        pytest.importorskip("deepspeed")
    else:
        more["use_cpu"] = True
    launcher = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    words = map(str, [ROOT / "recipes" / "decoder.py", *tiny_words(configs, recipe, tmp_path / "run", **more)])
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    learned(tmp_path / "run", "adapter_model.safetensors" if "lora" in recipe else "model.safetensors")


def test_evidence(configs, tiny_siglip, tmp_path, monkeypatch):
    """The labels that its zero-shot files ask for are of knees and skin, and the reports of the fixture have none."""
    more = {"evidence": "reports", "evidence_encoder": tiny_siglip, "evidence_index": tmp_path / "index"}
    words = tiny_words(configs, "lora_evidence", tmp_path / "run", use_cpu=True, **more)
    assert run_here(monkeypatch, "decoder", *words) == 0
    learned(tmp_path / "run", "adapter_model.safetensors")
    assert (tmp_path / "index" / "evidence.jsonl").is_file()

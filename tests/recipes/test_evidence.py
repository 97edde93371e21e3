"""Runs recipes/decoder.py with evidence: the index is built, its evidence told, and one process does as two do."""

import json
import shutil
import subprocess

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medfinetune.data.load import load_chats, load_pairs
from tests.recipes import test_training
from tests.recipes.test_training import LAUNCH, ROOT, options, run_here

configs = test_training.configs


@pytest.fixture
def recipe(configs, tmp_path, phantom_dir, tiny_siglip):
    """demo_evidence.yaml, cut to three steps and few prompts, as a file."""
    tasks = yaml.safe_load((phantom_dir / "raw" / "zero_shot.yaml").read_text(encoding="utf-8"))
    few = {
        name: {value: given | {"prompts": given["prompts"][:4]} for value, given in values.items()}
        for name, values in tasks.items()
    }
    (tmp_path / "zero_shot.yaml").write_text(yaml.safe_dump(few), encoding="utf-8")
    values = yaml.safe_load((ROOT / "recipes" / "decoder" / "demo_evidence.yaml").read_text(encoding="utf-8"))
    cut = yaml.safe_load(configs["decoder"].read_text(encoding="utf-8"))
    values |= {key: cut[key] for key in ("model_name_or_path", "data_dir", "per_device_train_batch_size")}
    values |= {
        "output_dir": str(tmp_path / "decoder"),
        "evidence_index": str(tmp_path / "index"),
        "evidence_encoder": str(tiny_siglip),
        "evidence_tasks": [str(tmp_path / "zero_shot.yaml")],
        "max_steps": 3,
        "logging_steps": 1,
    }
    path = tmp_path / "decoder_evidence.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in history if "loss" in line]


def test_the_index_is_built_and_its_evidence_told(recipe, tmp_path, phantom_dir, monkeypatch, capsys):
    words = ["--config", recipe]
    assert run_here(monkeypatch, "decoder", *words, "--dry_run") == 0
    assert "index is no index yet; it would be built by" in capsys.readouterr().out
    assert not (tmp_path / "index").exists()
    assert run_here(monkeypatch, "decoder", *words) == 0
    assert "with evidence (both), chats of " in capsys.readouterr().out
    assert len(losses(tmp_path / "decoder")) == 3
    assert run_here(monkeypatch, "decoder", *words, "--dry_run", "--output_dir", tmp_path / "other") == 0
    assert "knows 48 of 48 chats, 48 with neighbours and 48 with labels" in capsys.readouterr().out
    no_chat_is_told_of_its_own_patient(phantom_dir / "data", tmp_path / "index")


def no_chat_is_told_of_its_own_patient(data_dir, index):
    """Reports come once in English and once in Chinese: the twin is the nearest of all, and would give all away."""
    splits = load_pairs(data_dir).values()
    pairs = {row["id"]: row for split in splits for row in split.remove_columns("images")}
    told = [json.loads(line) for line in (index / "evidence.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["id"] for row in told} >= set(load_chats(data_dir, "train")["id"])
    num_near = 0
    for row in told:
        own = pairs[row["id"]]
        for near in row["neighbours"]:
            other, num_near = pairs[near["id"]], num_near + 1
            assert other["split"] == "train"
            assert set(other["pixel_sha256"]).isdisjoint(own["pixel_sha256"])
            assert not own["patient_id"] or (other["source"], other["patient_id"]) != (own["source"], own["patient_id"])
    assert num_near > 100


@pytest.mark.slow
def test_an_index_that_is_there_leaves_the_same_weights(recipe, tmp_path, monkeypatch):
    weights = {}
    for name, more in (("built", []), ("found", []), ("none", ["--evidence", "none"])):
        words = ["--config", recipe, "--output_dir", tmp_path / name, *more]
        assert run_here(monkeypatch, "decoder", *words) == 0
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    equal = {name: all(torch.equal(w, weights["built"][key]) for key, w in weights[name].items()) for name in weights}
    assert equal == {"built": True, "found": True, "none": False}


@pytest.mark.slow
def test_measured_beside_predicted(recipe, tmp_path, monkeypatch, capsys):
    """With the longest prompts: each chat told all of its evidence."""
    words = ["--config", recipe, "--host_memory_gib", 4, "--tflops", 0.01, "--measure"]
    assert run_here(monkeypatch, "preflight", *words) == 0
    out = capsys.readouterr().out
    assert int(out.split("chats of up to ")[1].split()[0]) > 250
    assert 1 / 1.15 < float(out.split("predicted / measured: ")[1].split()[0]) < 1.15


@pytest.mark.slow
def test_two_processes_train_as_one(recipe, tmp_path, monkeypatch):
    assert run_here(monkeypatch, "decoder", "--config", recipe) == 0
    command = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    shutil.rmtree(tmp_path / "index")  # they build it themselves: one does, the other waits
    keys = options({"output_dir": tmp_path / "two", "per_device_train_batch_size": 2, "dataloader_num_workers": 1})
    command += [str(ROOT / "recipes" / "decoder.py"), "--config", str(recipe), *keys]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "decoder"), rel=1e-4)


@pytest.mark.slow
def test_the_recipe_for_the_real_model_trains_a_tiny_one(recipe, tmp_path, monkeypatch, capsys):
    values = yaml.safe_load(recipe.read_text())
    changed = ("model_name_or_path", "data_dir", "evidence_index", "evidence_encoder")
    more = {key: values[key] for key in changed} | {"output_dir": tmp_path / "lora", "max_steps": 2, "eval_steps": 2}
    more |= {"model_revision": "null", "dtype": "float32", "bf16": False, "use_cpu": True, "dataloader_num_workers": 0}
    path = ROOT / "recipes" / "decoder" / "llama32_11b_lora_evidence.yaml"
    words = ["--config", path, *options(more), "--evidence_tasks", values["evidence_tasks"][0]]
    assert run_here(monkeypatch, "decoder", *words) == 0
    assert "exceed max_length 1024 and lose 0 tokens" in capsys.readouterr().out
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    history = json.loads((tmp_path / "lora" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_perplexity" in line for line in history)

"""Runs the real training commands on generated data with tiny models."""

import gc
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medfinetune.data.load import load_pairs
from medfinetune.decoder import merge
from medfinetune.decoder.model import load_decoder
from medfinetune.decoder.trainer import MllamaSFTTrainer
from medfinetune.encoder.model import load_encoder

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.fixture
def configs(phantom_dir, tiny_siglip, tiny_mllama, tmp_path):
    """The demo's own configs, cut to two steps, as files."""
    paths = {}
    for kind, model in (("encoder", tiny_siglip), ("decoder", tiny_mllama)):
        values = yaml.safe_load((ROOT / "recipes" / kind / "demo.yaml").read_text(encoding="utf-8"))
        values |= {
            "model_name_or_path": str(model),
            "data_dir": str(phantom_dir / "data"),
            "output_dir": str(tmp_path / kind),
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "logging_steps": 1,
        }
        if kind == "encoder":
            values["eval_steps"] = 1
        else:
            values["max_length"] = 256
        paths[kind] = tmp_path / f"{kind}.yaml"
        paths[kind].write_text(yaml.safe_dump(values), encoding="utf-8")
    return paths


def options(given):
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def launch(kind, config, processes=1, **given):
    command = [*LAUNCH, "--num_processes", str(processes), *(["--multi_gpu"] if processes > 1 else [])]
    command += [str(ROOT / "recipes" / f"{kind}.py"), "--config", str(config), *options(given)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def run_here(monkeypatch, kind, *words):
    """Without a process of its own, which takes seconds to import everything; returns the exit status."""
    monkeypatch.setattr(sys, "argv", [kind, *map(str, words)])
    try:
        runpy.run_path(str(ROOT / "recipes" / f"{kind}.py"), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def test_encoder_by_accelerate(configs, tmp_path):
    done = launch("encoder", configs["encoder"])
    assert done.returncode == 0, done.stderr
    assert "effective batch 4 (4 x 1 accumulation x 1 processes); 2 optimiser steps" in done.stdout
    model, processor = load_encoder(str(tmp_path / "encoder"))
    assert processor.image_processor.size["width"] == model.config.vision_config.image_size
    names = {path.name for path in (tmp_path / "encoder").iterdir()}
    assert {"config.yaml", "trainer_state.json", "model.safetensors", "checkpoint-2"} <= names
    assert not list((tmp_path / "encoder").rglob("pytorch_model*.bin"))


def test_decoder_by_accelerate(configs, tmp_path):
    done = launch("decoder", configs["decoder"])
    assert done.returncode == 0, done.stderr
    assert "exceed max_length 256 and lose 0 tokens" in done.stdout
    model, processor = load_decoder(str(tmp_path / "decoder"))
    assert processor.chat_template
    assert model.config.text_config.vocab_size == model.lm_head.weight.shape[0]


def test_lora_config_trains_a_tiny_model(configs, tmp_path, monkeypatch, capsys):
    """The real recipe's own settings, with nothing changed but model, data, precision and length of the run."""
    recipe = ROOT / "recipes" / "decoder" / "llama32_11b_lora.yaml"
    values = yaml.safe_load(configs["decoder"].read_text())
    words = ["--config", recipe, "--model_name_or_path", values["model_name_or_path"], "--data_dir", values["data_dir"]]
    words += ["--model_revision", "null", "--output_dir", tmp_path / "lora", "--max_steps", 2, "--dtype", "float32"]
    words += ["--bf16", "false", "--use_cpu", "true", "--dataloader_num_workers", 0, "--eval_steps", 2]
    words += ["--merge_adapter", "true"]
    seen, load, train = [], merge.load_decoder, MllamaSFTTrainer.train

    def train_and_look(self, **kwargs):
        seen.append(weakref.ref(self.model.get_base_model()))
        train(self, **kwargs)
        gc.disable()  # nothing is collected by chance

    def look_and_load(*args, **kwargs):
        gc.enable()
        seen.append(seen[0]())
        return load(*args, **kwargs)

    monkeypatch.setattr(MllamaSFTTrainer, "train", train_and_look)
    monkeypatch.setattr(merge, "load_decoder", look_and_load)
    assert run_here(monkeypatch, "decoder", *words) == 0
    assert seen[1] is None  # what was trained made room for the second model
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all("language_model" in name for name in weights)
    model, _ = load_decoder(str(tmp_path / "lora"))
    assert type(model).__name__.startswith("Peft")
    assert "merged model against adapter on 8 chats: logits differ by" in capsys.readouterr().out
    words = ["--adapter_dir", tmp_path / "lora", "--data_dir", values["data_dir"], "--dtype", "float32"]
    assert run_here(monkeypatch, "merge", *words, "--output_dir", tmp_path / "again") == 0
    one, other = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "lora" / "merged", tmp_path / "again")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert run_here(monkeypatch, "merge", "--adapter_dir", "nowhere", "--data_dir", values["data_dir"]) == 2
    assert "error: nowhere: holds no adapter" in capsys.readouterr().err


def tiny_words(configs, recipe, output_dir):
    """A real encoder recipe with nothing changed but model, data, precision, size and length of the run."""
    values = yaml.safe_load(configs["encoder"].read_text())
    words = ["--config", ROOT / "recipes" / "encoder" / f"{recipe}.yaml", "--output_dir", output_dir]
    words += ["--model_name_or_path", values["model_name_or_path"], "--data_dir", values["data_dir"]]
    words += ["--model_revision", "null", "--image_size_px", 96, "--use_cpu", "true"]
    words += ["--bf16", "false", "--fp16", "false"]
    return [*words, "--dataloader_num_workers", 0, "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1]


ENCODER_RECIPES = sorted(path.stem for path in (ROOT / "recipes" / "encoder").glob("siglip*.yaml"))


@pytest.mark.parametrize("recipe", ENCODER_RECIPES)
def test_encoder_recipes_train_a_tiny_model(configs, tmp_path, monkeypatch, capsys, recipe):
    """Each of them in one process, that for two GPUs too."""
    output = tmp_path / "run"
    assert run_here(monkeypatch, "encoder", *tiny_words(configs, recipe, output)) == 0
    mixes = recipe != "siglip_base_448"  # the original note's table knows no mixtures
    assert ("<- kept in wise_ft" in capsys.readouterr().out) == mixes
    folders = [output, output / "wise_ft"] if mixes else [output]
    if recipe.endswith("lora"):
        assert all((folder / "adapter_model.safetensors").is_file() for folder in folders)
        folders += [folder / "merged" for folder in folders]
    for folder in folders:
        model, processor = load_encoder(str(folder))
        assert model.config.vision_config.image_size == processor.image_processor.size["width"] == 96
    if mixes:
        assert len(json.loads((output / "wise_ft" / "wise_ft.json").read_text())["figures"]) == 5


def test_encoder_recipe_with_everything_else(configs, tmp_path, monkeypatch, capsys):
    """Mirroring, unique captions, a frozen tower and rates by layer, in one run."""
    words = ["--config", configs["encoder"], "--horizontal_flip_probability", 0.5, "--unique_captions", "true"]
    words += ["--freeze", "text", "--layer_decay", 0.8, "--vision_lr", 0.01, "--early_stopping_patience", 1]
    words += ["--warmup_steps", 0, "--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", "{}"]
    assert run_here(monkeypatch, "encoder", *words) == 0
    said = capsys.readouterr().out
    assert "training pairs may be mirrored" in said
    assert "which could not be avoided" in said
    values = yaml.safe_load(configs["encoder"].read_text())
    before = load_file(Path(values["model_name_or_path"]) / "model.safetensors")
    after = load_file(tmp_path / "encoder" / "model.safetensors")
    for name, weight in after.items():
        assert torch.equal(weight, before[name]) == name.startswith("text_model"), name


@pytest.mark.parametrize(
    ("kind", "recipe", "says"),
    [
        ("encoder", "siglip_base_448", "effective batch 64 (8 x 8 accumulation x 1 processes)"),
        ("encoder", "siglip_base_448_recommended", "effective batch 64 (64 x 1 accumulation x 1 processes)"),
        ("encoder", "siglip_base_multilingual_448", "effective batch 64 (64 x 1 accumulation x 1 processes)"),
        ("encoder", "siglip_base_448_lora", "effective batch 64 (64 x 1 accumulation x 1 processes)"),
        ("encoder", "siglip_base_448_2gpu", "effective batch 64 (64 x 1 accumulation x 1 processes)"),
        ("decoder", "llama32_11b_lora", "effective batch 4 (1 x 4 accumulation x 1 processes)"),
    ],
)
def test_dry_run_needs_no_weights(phantom_dir, monkeypatch, capsys, tmp_path, kind, recipe, says):
    words = ["--config", ROOT / "recipes" / kind / f"{recipe}.yaml", "--data_dir", phantom_dir / "data"]
    assert run_here(monkeypatch, kind, *words, "--output_dir", tmp_path / "none", "--dry_run") == 0
    said = capsys.readouterr().out
    assert says in said
    assert not (tmp_path / "none").exists()
    if kind == "decoder":
        assert "17,039,360 of 10,687,260,195 parameters" in said


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data_dir": "nowhere"}, "nowhere: no such folder"),
        ({"tasks": "gossip"}, "no training rows of the tasks gossip"),
        ({"learning_rate": "fast"}, "--learning_rate: 'fast'"),
        ({"no_such_key": "1"}, "unrecognized arguments: --no_such_key"),
        ({"resume_from_checkpoint": "true"}, "holds no checkpoint"),
        ({"resume_from_checkpoint": "/tmp"}, "lies outside output_dir"),
        ({"model_name_or_path": "nobody/nothing"}, "nobody/nothing: no such folder, and it could not be fetched"),
    ],
)
def test_errors_are_one_line(configs, monkeypatch, capsys, kind, given, message):
    assert run_here(monkeypatch, kind, "--config", configs[kind], *options(given)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("task", "message"),
    [("nowhere", "zero_shot_file nowhere: no such file"), ("skin_diagnosis", "no pair of the sources pad_ufes")],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_wrong_tasks_are_said_before_anything_is_made(configs, monkeypatch, capsys, task, message, dry_run):
    monkeypatch.setattr("medfinetune.encoder.model.load_encoder", lambda *args: pytest.fail("weights were loaded"))
    words = ["--config", configs["encoder"], "--zero_shot_file", task, "--dry_run", str(dry_run).lower()]
    assert run_here(monkeypatch, "encoder", *words) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_leak_stops_training_before_the_first_step(configs, phantom_dir, tmp_path, monkeypatch, capsys, kind):
    shutil.copytree(phantom_dir / "data", tmp_path / "leaky")
    path = tmp_path / "leaky" / "all_med_pairs.parquet"
    table = pq.read_table(path)
    splits = table["split"].to_pylist()
    row = splits.index("train")
    again = table.slice(row, 1).set_column(table.column_names.index("split"), "split", [["test"]])
    pq.write_table(pa.concat_tables([table, again.cast(table.schema)]), path)
    assert run_here(monkeypatch, kind, "--config", configs[kind], "--data_dir", tmp_path / "leaky") == 2
    assert "stands in test" in capsys.readouterr().err
    assert not (tmp_path / kind).exists()


def test_wrong_type_in_the_yaml(configs, monkeypatch, capsys):
    path = configs["decoder"]
    path.write_text(path.read_text() + "lora_r: 3.7\n")
    assert run_here(monkeypatch, "decoder", "--config", path) == 2
    assert "decoder.yaml: lora_r: 3.7:" in capsys.readouterr().err


def test_an_earlier_run_is_not_written_over(configs, tmp_path, monkeypatch, capsys):
    checkpoint = tmp_path / "encoder" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    assert run_here(monkeypatch, "encoder", "--config", configs["encoder"]) == 2
    assert "holds checkpoints of an earlier run; continue it with --resume_from_checkpoint" in capsys.readouterr().err
    assert list((tmp_path / "encoder").iterdir()) == [checkpoint]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(configs, tmp_path):
    steps = {"max_steps": 6, "eval_steps": 2, "save_total_limit": 5}
    whole = launch("encoder", configs["encoder"], output_dir=tmp_path / "whole", **steps)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, str(ROOT / "recipes" / "encoder.py"), "--config", str(configs["encoder"])]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, *options(steps | {"output_dir": killed})], stderr=subprocess.DEVNULL, cwd=ROOT
    )
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint-2" / "trainer_state.json").is_file():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").is_file()
    resumed = launch("encoder", configs["encoder"], output_dir=killed, resume_from_checkpoint="true", **steps)
    assert resumed.returncode == 0, resumed.stderr
    for name, weight in load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors").items():
        torch.testing.assert_close(load_file(killed / "checkpoint-6" / "model.safetensors")[name], weight)


@pytest.mark.slow
def test_two_processes(configs, tmp_path):
    done = launch("encoder", configs["encoder"], processes=2)
    assert done.returncode == 0, done.stderr
    assert "effective batch 8 (4 x 1 accumulation x 2 processes)" in done.stdout
    done = launch("decoder", configs["decoder"], processes=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "decoder" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"use_peft": True, "merge": True}, {"freeze": "vision"}], ids=["lora", "lit"])
def test_two_processes_mix_start_and_end(configs, tmp_path, given):
    """Adapters or a frozen tower, unique captions and mirroring, in a run of two processes."""
    values = yaml.safe_load(configs["encoder"].read_text())
    extra = {"unique_captions": True, "horizontal_flip_probability": 0.5, "wise_ft": [0, 0.5, 1]}
    configs["encoder"].write_text(yaml.safe_dump(values | extra | given))
    done = launch("encoder", configs["encoder"], processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<- kept in wise_ft") == 1
    assert "of their batch of 8, which could not be avoided" in done.stdout
    folders = [tmp_path / "encoder", tmp_path / "encoder" / "wise_ft"]
    folders += [folder / "merged" for folder in folders if given.get("merge")]
    for folder in folders:
        load_encoder(str(folder))


@pytest.mark.slow
def test_without_arguments_the_demo_is_trained(tmp_path):
    """Twice: the second run finds what the first one made."""
    for kind in ("encoder", "decoder"):
        command = [*LAUNCH, "--num_processes", "1", str(ROOT / "recipes" / f"{kind}.py")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "no config given: training the demo's tiny" in done.stdout
        assert f"--config recipes/{kind}/" in done.stdout
        assert (tmp_path / "runs" / "demo" / kind / "model.safetensors").is_file()


@pytest.mark.slow
def test_real_knee_images(real_data, configs, tmp_path):
    recipe = [sys.executable, str(ROOT / "recipes" / "prepare.py"), "--knee_dir", str(real_data / "knee")]
    done = subprocess.run(
        [*recipe, "--output_dir", str(tmp_path / "knee"), "--languages", "en", "--max_side_px", "448"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert len(load_pairs(tmp_path / "knee", "train")) > 1400
    for kind in ("encoder", "decoder"):
        given = {"data_dir": tmp_path / "knee", "tasks": "caption", "max_steps": 3}
        done = launch(kind, configs[kind], **given)
        assert done.returncode == 0, done.stderr
        assert "'loss'" in done.stdout

"""Runs recipes/preflight.py on tiny models."""

import json

import pytest
import yaml

from tests.recipes.test_training import ROOT, configs, run_here  # noqa: F401

RECIPES = ROOT / "recipes"


def preflight(monkeypatch, capsys, *words):
    status = run_here(monkeypatch, "preflight", *words)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("kind", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_measured_beside_predicted(monkeypatch, capsys, configs, kind):  # noqa: F811
    words = ["--config", configs[kind], "--host_memory_gib", 4, "--tflops", 0.01, "--measure"]
    status, out, err = preflight(monkeypatch, capsys, *words)
    assert status == 0, err
    assert "memory of each process, on the CPU" in out
    assert "it fits: " in out
    assert "an epoch" in out
    assert "training rows" in out
    ratio = float(out.split("predicted / measured: ")[1].split()[0])
    assert 1 / 1.15 < ratio < 1.15


@pytest.mark.slow
def test_what_would_make_it_fit(monkeypatch, capsys, configs):  # noqa: F811
    values = yaml.safe_load(configs["encoder"].read_text()) | {"use_cpu": False, "per_device_train_batch_size": 64}
    configs["encoder"].write_text(yaml.safe_dump(values))
    words = ["--config", configs["encoder"], "--gpu_memory_gib", 1.03, "--num_rows", 100]
    status, out, _ = preflight(monkeypatch, capsys, *words)
    assert status == 1
    assert "it does NOT fit: " in out
    assert "1. micro_batch_size: " in out


def test_deepspeed_need_not_be_installed(monkeypatch, capsys, configs, tmp_path):  # noqa: F811
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}))
    words = ["--config", configs["decoder"], "--deepspeed", path, "--num_gpus", 2, "--use_cpu", "false"]
    status, out, _ = preflight(monkeypatch, capsys, *words)
    assert status == 0
    assert "memory of each GPU (2), DeepSpeed ZeRO-3" in out
    assert "offloaded optimiser states" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "config: name one"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config", RECIPES / "decoder/demo.yaml", "--num_tiles", "5"], "num_tiles: 5: must be 1 to 4"),
        (
            ["--config", RECIPES / "decoder/demo.yaml", "--gpu_memory_gib", "0"],
            "gpu_memory_gib: 0.0: must be more than",
        ),
        (["--config", RECIPES / "decoder/demo.yaml", "--lora_rr", "5"], "unrecognized arguments: --lora_rr"),
        (
            ["--config", RECIPES / "decoder/llama32_11b_lora.yaml", "--deepspeed", "no.json"],
            "deepspeed: no.json: cannot",
        ),
        (["--config", RECIPES / "prepare/demo.yaml"], "kind: "),
    ],
)
def test_one_line_errors(monkeypatch, capsys, words, message):
    status, _, err = preflight(monkeypatch, capsys, *words)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]

"""What fails a run from outside: it ends with one line, and what was saved before can be gone on from."""

import os
import resource
import subprocess
from contextlib import contextmanager

import httpx2
import pytest
import torch
from huggingface_hub.utils import hf_raise_for_status
from safetensors.torch import load_file

from medfinetune.decoder.model import load_decoder
from tests.recipes import test_training
from tests.recipes.test_training import LAUNCH, ROOT, options, run_here

configs = test_training.configs


@contextmanager
def files_at_most(size):
    """As on a disk that runs full: what is written beyond fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("writes", ["model", "optimizer"])
def test_a_full_disk_leaves_the_last_checkpoint(configs, tmp_path, monkeypatch, capsys, writes):
    """The model's file is written first, then the optimizer's, which is larger."""
    words = ["--config", configs["decoder"], *options({"save_strategy": "steps", "save_steps": 2})]
    # Two steps and then two more are four steps only where the rate stays.
    words += options({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": "null", "warmup_steps": 0})
    run = tmp_path / "decoder"
    assert run_here(monkeypatch, "decoder", *words, "--max_steps", 2) == 0
    size = (run / "checkpoint-2" / "model.safetensors").stat().st_size
    on = [*words, "--max_steps", 4, "--resume_from_checkpoint", "true"]
    with files_at_most(size // 2 if writes == "model" else size + 100_000):
        assert run_here(monkeypatch, "decoder", *on) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: output_dir: {run} cannot be written")
    assert error.endswith(f"{run}/checkpoint-2 is whole; go on from it with --resume_from_checkpoint true")
    assert not (run / "checkpoint-4" / "trainer_state.json").exists()
    load_decoder(str(run / "checkpoint-2"))
    assert run_here(monkeypatch, "decoder", *on) == 0
    assert run_here(monkeypatch, "decoder", *words, "--max_steps", 4, "--output_dir", tmp_path / "whole") == 0
    for name, weight in load_file(tmp_path / "whole" / "model.safetensors").items():
        torch.testing.assert_close(load_file(run / "model.safetensors")[name], weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_gated_model_says_what_to_do(configs, monkeypatch, capsys, kind, status):
    """The Hub's answer is a fake one, read by the Hub's own library: nothing is fetched in a test."""

    def download(*args, **kwargs):
        request = httpx2.Request("GET", "https://huggingface.co/some/model/resolve/main/config.json")
        hf_raise_for_status(httpx2.Response(status, headers={"X-Error-Code": "GatedRepo"}, request=request))

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    assert run_here(monkeypatch, kind, "--config", configs[kind], "--model_name_or_path", "some/model") == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "accept its licence at https://huggingface.co/some/model, run `hf auth login`, and start again" in error


def in_two_processes(fault, kind, *words):
    """The run's output, of which one process alone meets the fault."""
    worker = [str(ROOT / "tests" / "recipes" / "faults_worker.py"), fault, kind]
    command = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", *worker]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=300, env=env)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stage"), [("encoder", None), ("decoder", None), ("decoder", 2), ("decoder", 3)])
def test_a_loss_that_one_process_has_ends_both(configs, tmp_path, kind, stage):
    words = ["--config", configs[kind], *options({"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"})]
    if stage:
        pytest.importorskip("deepspeed")
        words += ["--deepspeed", f"ds_configs/zero{stage}.json"]
    said = in_two_processes("nan", kind, *words, "--max_steps", 4)
    [error] = [line for line in said.splitlines() if "error: step" in line]
    assert "step 3: the loss is nan (rows " in error
    assert error.endswith("checkpoint-2 is whole; go on from it with --resume_from_checkpoint true")
    run = tmp_path / kind
    assert not (run / "checkpoint-3").exists()
    assert all(weight.isfinite().all() for weight in load_file(run / "checkpoint-2" / "model.safetensors").values())


@pytest.mark.slow
def test_a_process_that_fails_alone_says_so(configs):
    said = in_two_processes(
        "memory", "decoder", "--config", configs["decoder"], "--max_steps", 4, "--save_strategy", "no"
    )
    [error] = [line for line in said.splitlines() if "error: " in line and "step" in line]
    assert error.startswith("[rank 1] error: step 2: out of memory; the longest row of the batch is chat ")


@pytest.mark.slow
def test_processes_that_fail_alike_say_it_once(configs):
    said = in_two_processes("memory", "decoder", "--config", configs["decoder"], "--data_dir", "nowhere")
    [error] = [line for line in said.splitlines() if "nowhere" in line]
    assert error.startswith("error: nowhere: no such folder")

"""What fails a run from outside: it ends with one line, and what was saved before can be gone on from."""

import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from medfinetune.decoder.model import load_decoder
from tests.recipes import test_training
from tests.recipes.test_training import options, run_here

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

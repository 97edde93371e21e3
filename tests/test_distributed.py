"""Two real processes; one process alone is what every other test is."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from medfinetune.distributed import check_deepspeed, gather, rank, sum_over_processes, world_size
from medfinetune.errors import InputError
from tests.processes import TWO_PROCESSES

WORKER = """
import torch
from torch import distributed as dist
from medfinetune.distributed import gather, leave, rank, sum_over_processes, world_size
dist.init_process_group("gloo")
assert world_size() == 2
rows = torch.arange(6, dtype=torch.float64).view(3, 2) + 100 * rank()
everyones = gather(rows.requires_grad_())
assert everyones.tolist() == [[0, 1], [2, 3], [4, 5], [100, 101], [102, 103], [104, 105]], everyones
assert not everyones.requires_grad
assert sum_over_processes(torch.tensor([1.0 + rank()])).tolist() == [3.0]
try:
    gather(torch.zeros(2 + rank()))
except ValueError as error:
    assert "the processes hold [2, 3] rows" in str(error)
else:
    raise AssertionError("different numbers of rows were gathered")
leave()
assert world_size() == 1
print("done")
leave()
"""


def test_two_processes(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    command = [*TWO_PROCESSES, str(tmp_path / "worker.py")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2


def test_one_process_alone():
    assert (rank(), world_size()) == (0, 1)
    rows = torch.ones(2, 3)
    assert torch.equal(gather(rows), rows)
    assert torch.equal(sum_over_processes(rows), rows)


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (False, r"is not installed; install it with: pip install 'medfinetune\[deepspeed\]'"),
        (True, "needs a launcher that joins processes, such as accelerate launch --multi_gpu --num_processes 2"),
    ],
)
def test_deepspeed_says_what_it_lacks(monkeypatch, installed, message):
    # DeepSpeed is an extra: this must hold where it is installed and where it is not.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=f"^deepspeed: {message}"):
        check_deepspeed({"steps_per_print": 9})
    check_deepspeed({"steps_per_print": 9}, dry_run=True)

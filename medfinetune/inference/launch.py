"""Several processes that write reports together, started through accelerate."""

import os
import subprocess
import sys
from datetime import timedelta

import torch

_LAUNCHED = "MEDFINETUNE_LAUNCHED"
_LONGEST_WAIT = timedelta(weeks=8)


def is_launched() -> bool:
    """Whether this process was started by a launcher that joins processes."""
    return "RANK" in os.environ


def is_launched_here() -> bool:
    """Whether `launch` started it, which looks at what it left."""
    return _LAUNCHED in os.environ


def launch(num_processes: int) -> int:
    """Runs the present command in several processes through accelerate.

    Returns:
        The launcher's exit status.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    command += ["--num_processes", str(num_processes), "--num_machines", "1", "--main_process_port", "0"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    with subprocess.Popen([*command, *sys.argv], env=os.environ | {_LAUNCHED: "1"}) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def join_processes() -> torch.device:
    """Joins the processes of a launcher, where there is one.

    Returns:
        The device of this process.
    """
    if not is_launched():
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    from accelerate import PartialState  # it takes a while, and one process does without

    # The first process waits for the last, which may have hours of work left.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT).device

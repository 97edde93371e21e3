"""One contender in a process of its own: what it takes beyond what was there before, in memory and in time."""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]


def run_alone(script: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Starts a script of this folder, which prints JSON on its last line, and returns that."""
    command = [sys.executable, str(REPO / "tests" / "benchmarks" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"} | environment
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """Runs `work` once: peak extra resident memory in MiB, wall-clock and CPU seconds.

    The peak is that of the kernel (`VmHWM`), set back before, so that it also holds what no allocator of Python's or
    torch's counts. What was freed before is given back first; it would hide the first extra bytes.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, started = _status("VmRSS"), time.process_time(), time.perf_counter()
    kept = work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = _status("VmHWM")
    del kept
    return {"mib": (peak - before) / 1024, "seconds": seconds, "cpu_seconds": cpu_seconds}


def _status(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def ratio(one: float | None, other: float | None, digits: int = 3) -> float | None:
    """`one / other`; null where either was not measured."""
    return None if one is None or other is None else round(one / other, digits)

"""Both contenders of the bootstrap's benchmark work out the same intervals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.report_bootstrap import KEYS, draw_cases, ours, plain_loop


def test_both_give_the_same_intervals():
    cases, patients = draw_cases(200, 120)
    assert len(set(patients)) < 200
    one, other = (work(cases, patients, 600) for work in (ours, plain_loop))
    widths = np.diff(one)
    assert (np.abs(np.subtract(one, other)) < 0.25 * widths).all()
    right, stated, true = (sum(case[i] for case in cases) for i in range(3))
    assert one[0][0] < 2 * right / (stated + true) < one[0][1]


@pytest.mark.slow
def test_the_script_prints_its_figures():
    script = Path(__file__).with_name("report_bootstrap.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert tuple(figures) == KEYS
    assert all(figure > 0 for figure in figures.values())

"""Runs the real command with tiny, untrained models."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch

from medfinetune.inference.build import build_index
from medfinetune.inference.config import IndexConfig

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "report.py"


def _options(given):
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def _command(**given):
    return [sys.executable, str(RECIPE), *_options(given)]


def _report(monkeypatch, **given):
    """In this process; returns the exit status."""
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *_options(given)])
    try:
        runpy.run_path(str(RECIPE), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def _lines(folder, name="reports.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def _texts(folder):
    return {row["id"]: row["text"] for row in _lines(folder)}


@pytest.fixture(scope="module")
def index_dir(tiny_siglip, phantom_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    return build_index(IndexConfig(str(tiny_siglip), str(phantom_dir / "data"), str(folder)))


@pytest.fixture
def given(tiny_siglip, tiny_mllama, index_dir, phantom_dir, tmp_path):
    files = sorted((phantom_dir / "data" / "images").rglob("*.png"))[:7]
    table = tmp_path / "images.csv"
    rows = [f"{path},{'zh' if i % 2 else 'en'}" for i, path in enumerate(files)]
    table.write_text("\n".join(["image,language", *rows]) + "\n", encoding="utf-8")
    models = {"encoder_dir": tiny_siglip, "decoder_dir": tiny_mllama, "index_dir": index_dir}
    options = {"max_new_tokens": 6, "shard_size": 3, "batch_size": 2}
    return models | options | {"input": table, "output_dir": tmp_path / "out"}


def test_a_list_of_images(given, tmp_path, monkeypatch, capsys):
    assert _report(monkeypatch, dry_run="true", **given) == 0
    assert "images.csv: 7 reports would be written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert _report(monkeypatch, **given) == 0
    assert "out: 7 reports, 7 of them new" in capsys.readouterr().out
    rows = _lines(tmp_path / "out")
    assert [row["language"] for row in rows] == ["en", "zh"] * 3 + ["en"]
    assert all(row["evidence"]["neighbours"] for row in rows)
    assert (tmp_path / "out" / "index.html").read_text(encoding="utf-8").count('alt="Image of report ') == 7
    assert set(json.loads((tmp_path / "out" / "latency.json").read_text())) >= {"embedding", "lookup", "first_token"}
    assert _report(monkeypatch, **given) == 0
    assert "out: 7 reports, 0 of them new" in capsys.readouterr().out
    assert _report(monkeypatch, seed=1, **given) == 2
    assert "was begun with seed 0, and it is 1 now" in capsys.readouterr().err


def test_a_decoder_that_was_trained_on_is_not_gone_on_with(given, tmp_path, monkeypatch, capsys):
    decoder = shutil.copytree(given["decoder_dir"], tmp_path / "decoder")
    assert _report(monkeypatch, **(given | {"decoder_dir": decoder})) == 0
    weights = safetensors.torch.load_file(decoder / "model.safetensors")
    weights[next(iter(weights))] += 1
    safetensors.torch.save_file(weights, decoder / "model.safetensors", {"format": "pt"})
    assert _report(monkeypatch, **(given | {"decoder_dir": decoder})) == 2
    assert "out: was begun with another decoder: " in capsys.readouterr().err


def test_an_image_that_does_not_open_is_told_and_the_rest_written(given, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with given["input"].open("a") as file:
        file.write(f"{broken},en\n")
    assert _report(monkeypatch, **given) == 1
    assert "7 reports, 7 of them new; 1 failed, see failed.jsonl" in capsys.readouterr().out
    [failed] = _lines(tmp_path / "out", "failed.jsonl")
    assert failed["id"] == str(broken)
    assert "does not open as an image" in failed["reason"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input": "/nowhere"}, "/nowhere: no such folder or file (input)"),
        ({"index_dir": "/nowhere"}, "/nowhere: holds no whole index"),
        ({"decoder_dir": "/nowhere/decoder"}, "/nowhere/decoder: "),
        ({"encoder_dir": "/nowhere/encoder"}, "/nowhere/encoder: "),
        ({"temperature": 0}, "temperature: must be above 0"),
        ({"rerank_weight": 2}, "rerank_weight: must be in [0, 1]"),
        ({"lexicon": "nowhere"}, "lexicon nowhere: no such file"),
        ({"candidates": 3}, "unrecognized arguments: --candidates 3"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(given, monkeypatch, capsys, wrong, message):
    assert _report(monkeypatch, **(given | wrong)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_evidence_needs_an_index(given, monkeypatch, capsys):
    del given["index_dir"]
    assert _report(monkeypatch, evidence="labels", **given) == 2
    assert "evidence: labels needs index_dir" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_a_killed_run_goes_on(given, tmp_path, monkeypatch):
    """One that is killed in the middle, then two through accelerate: as one that was left in peace."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with given["input"].open("a") as file:
        file.write(f"{broken},en\n")
    quiet = {"num_on_page": 0, "max_new_tokens": 48, "num_candidates": 2}
    peace = given | quiet | {"output_dir": tmp_path / "peace"}
    assert _report(monkeypatch, **peace) == 1
    hurt = given | quiet | {"output_dir": tmp_path / "hurt"}
    process = subprocess.Popen(_command(**hurt), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    first = tmp_path / "hurt" / "shards" / "00000000.jsonl"
    ends = time.monotonic() + 120
    while not (first.is_file() and first.stat().st_size) and time.monotonic() < ends:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "hurt" / "reports.jsonl").exists()
    done = subprocess.run(_command(num_processes=2, **hurt), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-3000:]  # for the broken one, without a launcher's traceback
    assert "Traceback" not in done.stderr
    assert "of process 1 of 2" in done.stderr
    assert "hurt: 7 reports" in done.stdout
    assert "7 of them new" not in done.stdout
    assert [row["number"] for row in _lines(tmp_path / "hurt")] == list(range(7))
    assert _texts(tmp_path / "hurt") == _texts(tmp_path / "peace")


@pytest.mark.slow
def test_it_runs_under_accelerate_and_tells_what_failed(given, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    given["input"].write_text(f"image\n{broken}\n{broken}\n", encoding="utf-8")
    one_each = given | {"shard_size": 1, "num_on_page": 0}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    theirs = subprocess.run(
        [*launch, str(RECIPE), *_options(one_each)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert theirs.returncode == 1
    assert "0 reports, 0 of them new; 2 failed" in theirs.stdout

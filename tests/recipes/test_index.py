"""Runs the real command with the tiny, untrained encoder."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from medfinetune.inference.build import read_evidence
from medfinetune.inference.index import ImageIndex

RECIPE = Path(__file__).parents[2] / "recipes" / "index.py"
TASKS = {"heart": {"enlarged": ["Heart enlarged."], "normal": ["Heart size normal."]}}


def _index(monkeypatch, **given):
    """In this process; returns the exit status."""
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *(word for k, v in given.items() for word in (f"--{k}", str(v)))])
    try:
        runpy.run_path(str(RECIPE), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture
def given(tiny_siglip, phantom_dir, tmp_path):
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(TASKS), encoding="utf-8")
    folders = {"encoder_dir": tiny_siglip, "data_dir": phantom_dir / "data", "output_dir": tmp_path / "index"}
    return folders | {"zero_shot_file": tmp_path / "tasks.yaml"}


def test_an_index_is_built_and_left(given, tmp_path, monkeypatch, capsys):
    assert _index(monkeypatch, dry_run="true", **given) == 0
    assert capsys.readouterr().out.strip().endswith("index: would be built")
    assert not (tmp_path / "index").exists()
    assert _index(monkeypatch, **given) == 0
    said = capsys.readouterr().out
    assert "index: built, 24 images (exact)" in said
    assert "label heart: as the encoder was trained" in said  # 6 images of the validation split are too few
    assert "1st percentile of 6 images of the split validation" in said
    assert len(ImageIndex.load(tmp_path / "index")) == 24
    assert read_evidence(tmp_path / "index")
    assert yaml.safe_load((tmp_path / "index" / "config.yaml").read_text())["num_neighbours"] == 3
    assert _index(monkeypatch, **given) == 0
    assert "index: unchanged, 24 images (exact)" in capsys.readouterr().out
    assert _index(monkeypatch, dry_run="true", **given) == 0
    assert "is up to date" in capsys.readouterr().out
    assert _index(monkeypatch, num_neighbours=2, **given) == 2
    assert "holds an index of other keys" in capsys.readouterr().err
    assert _index(monkeypatch, num_neighbours=2, overwrite="true", **given) == 0
    assert json.loads((tmp_path / "index" / "index.json").read_text())["num_neighbours"] == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoder_dir": "/nowhere"}, "/nowhere: "),
        ({"data_dir": "/nowhere"}, "/nowhere/all_med_pairs.parquet: no such file; recipes/prepare.py makes it"),
        ({"zero_shot_file": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"num_neighbours": 0}, "num_neighbours: must be at least 1"),
        ({"index_type": "tree"}, "index_type"),
        ({"k": 3}, "k"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(given, monkeypatch, capsys, wrong, message):
    assert _index(monkeypatch, **(given | wrong)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_without_arguments_it_says_how(monkeypatch, capsys):
    assert _index(monkeypatch) == 2
    assert "python recipes/index.py --config recipes/index/demo.yaml" in capsys.readouterr().err

import json
import subprocess
import sys

import numpy as np
import pytest

from medfinetune.data.prepare import PrepareConfig
from medfinetune.parser import parse
from tests.data.raw_folders import save, write_dicom, write_knee, write_table
from tests.real_data import REPO


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=REPO, capture_output=True, text=True, check=False)


@pytest.fixture
def config(tmp_path):
    write_knee(tmp_path / "raw" / "knee", {i: (i % 5, i % 5) for i in range(10)})
    save(tmp_path / "raw" / "a.png", 77)
    write_table(
        tmp_path / "raw" / "own.csv", [{"bild": "a.png", "befund": "No fracture."}, {"bild": "b.png", "befund": "x"}]
    )
    lines = [
        f"knee_dir: {tmp_path}/raw/knee",
        f"reports_file: {tmp_path}/raw/own.csv",
        "reports_columns: {image: bild, text: befund}",
        f"output_dir: {tmp_path}/out",
        "validation_fraction: 0.2",
    ]
    path = tmp_path / "mix.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_prepares_and_sums_up(config, tmp_path):
    result = run("recipes/prepare.py", "--config", config, "--languages", "en")
    assert result.returncode == 0, result.stderr
    for line in (
        "records in        22",
        "pairs kept        11",
        "duplicate",
        "WARNING: reports: 1 image file is missing",
    ):
        assert line in result.stdout
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert report["by_split"] == {"train": 9, "validation": 2}
    chats = tmp_path / "out" / "chat_instructions.jsonl"
    before = chats.read_bytes()
    chats.unlink()
    result = run("recipes/chats.py", "--data_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert chats.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a config is needed: python recipes/prepare.py --config recipes/prepare/demo.yaml"),
        (["--output_dir", "out"], "give at least one of knee_dir"),
        (
            ["--output_dir", "out", "--knee_dir", "nowhere"],
            "nowhere (knee_dir): no such folder; to prepare without: --knee_dir null",
        ),
        (
            ["--output_dir", "out", "--knee_dir", "no", "--slake_dir", "none"],
            "no (knee_dir), none (slake_dir): no such folder; to prepare without: --knee_dir null --slake_dir null",
        ),
        (["--output_dir", "out", "--knee_dir", "x", "--knee_grader", "III"], "knee_grader"),
        (["--output_dir", "out", "--knee_dir", "x", "--max_pairs", "{knee: many}"], "max_pairs"),
        (["--output_dir", "out", "--knee_dir", "x", "--knee_dirs", "y"], "knee_dirs"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path):
    # The folder is made before the sources are read.
    result = run("recipes/prepare.py", *(tmp_path / word if word == "out" else word for word in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_patients_in_headers_take_a_key(tmp_path):
    for i in range(2):
        write_dicom(tmp_path / "scans" / f"{i}.dcm", np.full((4, 4), i, np.uint16))
        (tmp_path / "scans" / f"{i}.txt").write_text(f"Report {i}.")
    (tmp_path / "patients.key").write_text("0123456789abcdef" * 4)
    command = ["recipes/prepare.py", "--reports_dir", tmp_path / "scans", "--output_dir", tmp_path / "data"]
    refused = run(*command)
    assert refused.returncode == 2
    assert "give patient_key_file" in refused.stderr
    result = run(*command, "--patient_key_file", tmp_path / "patients.key")
    assert result.returncode == 0, result.stderr
    assert "0123456789abcdef" not in (tmp_path / "data" / "data_report.json").read_text()


@pytest.mark.parametrize("name", ["demo.yaml", "original_mix.yaml"])
def test_recipes_are_parsed(name):
    path = REPO / "recipes" / "prepare" / name
    config = parse(PrepareConfig, "", argv=["--config", str(path)])
    assert path.read_text().splitlines()[0] == f"# python recipes/prepare.py --config recipes/prepare/{name}"
    assert all((config.knee_dir, config.pad_ufes_dir, config.slake_dir, config.reports_file))

"""Runs the real command on generated data with tiny, untrained models."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from medfinetune.data.phantom.folders import Sizes, write_raw_folders
from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.evaluation.report_suite import CONDITIONS
from medfinetune.inference.build import build_index
from medfinetune.inference.config import IndexConfig
from medfinetune.tiny import make_tiny_mllama, make_tiny_siglip

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "evaluate.py"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sizes = Sizes(knee=6, pad_ufes=6, slake=4, report_train=8, report_validation=4, report_test=10)
    write_raw_folders(folder / "raw", sizes=sizes)
    raw = str(folder / "raw" / "reports.csv")
    prepare(PrepareConfig(reports_file=raw, output_dir=str(folder / "data"), num_workers=1))
    make_tiny_siglip(folder / "encoder")
    make_tiny_mllama(folder / "decoder")
    return folder


def _options(given):
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def _evaluate(**given):
    command = [sys.executable, str(RECIPE), *_options(given)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def _evaluate_here(monkeypatch, **given):
    """Without a process of its own, which takes seconds to import everything; returns the exit status."""
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *_options(given)])
    try:
        runpy.run_path(str(RECIPE), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def test_both_models(run_dir, tmp_path):
    done = _evaluate(
        data_dir=run_dir / "data",
        encoder_dir=run_dir / "encoder",
        decoder_dir=run_dir / "decoder",
        output_dir=tmp_path,
        zero_shot_file=run_dir / "raw" / "zero_shot.yaml",
        lexicon="phantom",
        max_new_tokens=6,
        pool_size=4,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {"prepare", "split", "encoder", "decoder", "reports", "seconds"}
    assert set(results["encoder"]["recall_at_1_among_4"]) == {"en", "zh"}
    assert len(results["encoder"]["zero_shot_by_attribute"]) == 8
    assert 0 <= results["encoder"]["zero_shot_accuracy_shuffled_image"] <= 1
    decoder = results["decoder"]
    assert decoder["num_cases"] == 20
    # Untrained, it states nothing; the references state everything.
    assert decoder["num_findings"] == 160
    assert decoder["finding_accuracy"] < 0.2
    assert decoder["finding_accuracy_majority"] > 0.3
    assert decoder["perplexity"] > 10
    assert set(decoder["bleu"]) == {"en", "zh"}
    assert results["prepare"]["records_in"] == results["prepare"]["pairs"] + sum(results["prepare"]["dropped"].values())
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 20
    assert all((run_dir / "data" / row["image"]).is_file() for row in rows)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count('alt="Image of case ') == 20
    # 16 queries, two of each attribute, beside as many training images as show another patient and other pixels.
    assert page.count('alt="Query ') == 16
    assert page.count('alt="Neighbour ') == 80
    assert page.count("data:image/jpeg;base64,") == 20 + 16 + 80
    assert set(results["encoder"]["linear_probe_by_attribute"]) == set(results["encoder"]["zero_shot_by_attribute"])
    assert "refitted" in results["encoder"]["calibration"]["match"]
    assert str(tmp_path / "index.html") in done.stdout


def test_the_whole_system_beside_its_controls(run_dir, tmp_path, monkeypatch, capsys):
    index = build_index(
        IndexConfig(
            encoder_dir=str(run_dir / "encoder"),
            data_dir=str(run_dir / "data"),
            output_dir=str(tmp_path / "index"),
            zero_shot_file=str(run_dir / "raw" / "zero_shot.yaml"),
            num_neighbours=1,
        )
    )
    models = {name: run_dir / name.removesuffix("_dir") for name in ("encoder_dir", "decoder_dir", "data_dir")}
    given = models | {
        "index_dir": index,
        "lexicon": "phantom",
        "max_new_tokens": 3,
        "num_resamples": 20,
        "pool_size": 4,
    }
    given |= {"max_training_images": 0, "max_cases": 8, "evidence": "both"}
    assert _evaluate_here(monkeypatch, output_dir=tmp_path / "one", variants="labels", **given) == 0
    assert "reports  finding F1, nearest report copied" in capsys.readouterr().out
    results = json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8"))
    reports = results["reports"]
    assert set(reports["conditions"]) == {*CONDITIONS, "evidence_labels"}
    # It is untrained, but real reports are real reports.
    assert reports["conditions"]["nearest_report_copied"]["finding_f1"] > 0.2
    assert reports["conditions"]["own"]["finding_f1"] < 0.2
    assert reports["differences"]["nearest_report_copied"]["finding_f1"]["difference_ci"][1] < 0
    assert set(reports["latency"]) >= {"embedding", "lookup", "first_token", "per_token"}
    assert reports["conditions"]["own"]["perplexity"] > 10
    rows = [json.loads(line) for line in (tmp_path / "one" / "predictions.jsonl").read_text("utf-8").splitlines()]
    truth = {row["id"]: row["reference"] for row in rows}
    for row in rows:
        assert row["evidence"]["neighbours"][0]["text"] == row["generated_nearest_report_copied"] != truth[row["id"]]
        assert len(row["evidence"]["labels"]) == 8
    table = (tmp_path / "one" / "model_card_table.md").read_text(encoding="utf-8")
    assert "| finding F1" in table
    assert 'id="reports"' in (tmp_path / "one" / "index.html").read_text(encoding="utf-8")
    # The same run again, compared with the first: no difference at all.
    compared = json.dumps({"first": str(tmp_path / "one")})
    assert _evaluate_here(monkeypatch, output_dir=tmp_path / "two", compared_with=compared, **given) == 0
    results = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))
    difference = results["reports"]["compared_with"]["first"]["differences"]["finding_f1"]
    assert (difference["difference"], difference["difference_ci"]) == (0.0, [0.0, 0.0])
    wrong = given | {"evidence": "none", "compared_with": json.dumps({"other": str(tmp_path)})}
    assert _evaluate_here(monkeypatch, output_dir=tmp_path / "three", **wrong) == 2
    assert "compared_with: other: " in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "three").exists()


def test_the_encoder_alone(run_dir, tmp_path, monkeypatch):
    given = {"data_dir": run_dir / "data", "encoder_dir": run_dir / "encoder", "output_dir": tmp_path / "new"}
    assert _evaluate_here(monkeypatch, max_cases=6, **given) == 0
    results = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert results["encoder"]["num_pairs"] == 6
    assert "decoder" not in results
    assert not (tmp_path / "new" / "predictions.jsonl").exists()
    assert 'id="decoder"' not in (tmp_path / "new" / "index.html").read_text(encoding="utf-8")


def test_dry_run_loads_no_model_and_writes_nothing(run_dir, tmp_path, monkeypatch, capsys):
    given = {"data_dir": run_dir / "data", "encoder_dir": "meta/gated", "output_dir": tmp_path / "new"}
    assert _evaluate_here(monkeypatch, dry_run="true", lexicon="phantom", **given) == 0
    assert "20 cases of the split test" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_what_a_user_should_know_is_said_before_anything_is_loaded(run_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.yaml").write_text("evidence: labels\n", encoding="utf-8")
    ankle = tmp_path / "ankle.yaml"
    ankle.write_text("findings: {weber: {values: {b: {en: [weber b]}}}}", encoding="utf-8")
    given = {"data_dir": run_dir / "data", "decoder_dir": tmp_path / "decoder", "output_dir": tmp_path / "new"}
    assert _evaluate_here(monkeypatch, dry_run="true", split="train", lexicon=ankle, **given) == 0
    said = capsys.readouterr().err
    assert "warning: models that were trained on the split train have seen these cases" in said
    assert f"warning: lexicon {ankle}: none of the 16 references states a finding of it" in said
    assert "decoder was trained with evidence: labels, and is told none" in said
    assert _evaluate_here(monkeypatch, dry_run="true", lexicon="phantom", **given | {"decoder_dir": "meta/one"}) == 0
    assert "warning" not in capsys.readouterr().err


def test_without_arguments_it_says_how(monkeypatch, capsys):
    assert _evaluate_here(monkeypatch) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "python recipes/evaluate.py --config recipes/evaluate/demo.yaml" in message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data_dir": "nowhere"}, "nowhere: no such folder"),
        ({"encoder_dir": "/nowhere/encoder"}, "/nowhere/encoder: "),
        ({"decoder_dir": "/nowhere/decoder"}, "/nowhere/decoder: "),
        ({"zero_shot_file": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        (
            {"zero_shot_file": "knee_grad"},
            "zero_shot_file knee_grad: no such file, and no task of that name (known: knee",
        ),
        (
            {"zero_shot_file": "knee_grade"},
            "zero_shot_file: task knee_grade: no pair of the sources knee, chen has a label",
        ),
        ({"num_resamples": -1}, "num_resamples: must be at least 0"),
        ({"lexicon": "nowhere"}, "lexicon nowhere: no such file"),
        ({"tasks": "caption"}, "no pair of the tasks caption"),
        ({"split": "dev"}, "split: 'dev' is none of"),
        ({"num_images": 3}, "num_images"),
        ({"evidence": "labels"}, "evidence: labels needs index_dir; recipes/index.py makes it"),
        ({"variants": "reports"}, "variants: reports needs index_dir"),
        ({"index_dir": "nowhere"}, "nowhere: holds no whole index"),
        ({"compared_with": "{one: nowhere}"}, "compared_with: is of reports, which decoder_dir writes"),
        ({"rerank_weight": 2}, "rerank_weight: must be in [0, 1]"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(run_dir, tmp_path, monkeypatch, capsys, wrong, message):
    given = {"data_dir": run_dir / "data", "encoder_dir": run_dir / "encoder", "output_dir": tmp_path} | wrong
    assert _evaluate_here(monkeypatch, **given) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line

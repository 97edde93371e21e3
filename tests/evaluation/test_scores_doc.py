"""What docs/scores.md says is so."""

import json
import re
from dataclasses import fields
from pathlib import Path

import evaluate
import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation import finding_metric, metrics, number_metrics
from medfinetune.evaluation.cases import load_cases
from medfinetune.evaluation.report_cases import report_cases
from medfinetune.evaluation.report_figures import KINDS, FigureKind
from medfinetune.evaluation.report_suite import CONDITIONS, score_reports
from tests.evaluation.test_report_suite import count, made

DOC = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
TEXTS = {"predictions": ["No effusion."], "references": ["Left effusion."]}
GIVEN = {
    "EncoderSimilarity": {"predictions": [[1.0, 0.0]], "references": [[1.0, 0.0]]},
    "Perplexity": {"predictions": [1.0], "references": [2]},
    "Calibration": {"predictions": [0.5], "references": [True]},
    "Latency": {"predictions": [0.5], "references": ["lookup"]},
}


def test_two_runs_are_compared_as_it_says(phantom_dir, tmp_path, capsys):
    cases = report_cases(*load_cases(phantom_dir / "data", "test", ["caption", "report", "question"]))
    for name in ("new", "earlier"):
        (tmp_path / name).mkdir()
        texts = {case.id: case.reference if name == "new" else "" for case in cases}
        lines = (json.dumps({"id": identity, "generated": text}) for identity, text in texts.items())
        (tmp_path / name / "predictions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code = CODE[0]
    code = code.replace("data/prepared", str(phantom_dir / "data")).replace('"runs/', f'"{tmp_path}/')
    exec(code.replace('"slake"', '"phantom"'), {})
    found = eval(capsys.readouterr().out.splitlines()[-1])
    assert found["difference"] > 0.99
    assert found["difference_ci"] == [found["difference"]] * 2


def test_every_figure_condition_and_key_is_described():
    result, rows = score_reports(*made(), count_findings=count, latency={}, num_resamples=10)
    for name in (*KINDS, *CONDITIONS, *result, *(field.name for field in fields(FigureKind))):
        assert f"`{name}" in DOC, name
    for name in rows[0]:
        if name in ("generated", "scores", "finding_counts", "by_finding", "evidence"):
            assert f"`{name}`" in DOC, name


def test_the_metrics_give_what_it_says(capsys):
    assert len(CODE) == 2
    exec(CODE[1], {})
    finding_f1, token_f1, bleu = (float(line) for line in capsys.readouterr().out.splitlines())
    assert f"# {finding_f1}: one side is wrong" in CODE[1]
    assert f"# {token_f1}: two of three" in CODE[1]
    assert bleu == pytest.approx(100)


def test_every_metric_stands_in_its_table():
    table = re.findall(r"^\| `(\w+)\(.*?\)` \| `(\w+)` \| .*? \| (.*) \|$", DOC, re.MULTILINE)
    modules = {module.__name__.rpartition(".")[2]: module for module in (finding_metric, metrics, number_metrics)}
    there = {
        (name, place)
        for place, module in modules.items()
        for name, one in vars(module).items()
        if isinstance(one, type) and issubclass(one, evaluate.Metric) and one.__module__ == module.__name__
    }
    assert {(name, place) for name, place, _ in table} == there
    for name, place, keys in table:
        options = {"scale": 1.0} if name == "EncoderSimilarity" else {}
        found = getattr(modules[place], name)(**options).compute(**GIVEN.get(name, TEXTS))
        assert set(re.findall(r"`(\w+)`", keys)) == set(found["lookup"] if name == "Latency" else found), name


@pytest.mark.parametrize("make", [metrics.Bleu, metrics.ChrF])
def test_two_languages_are_refused_as_it_says(make):
    texts = {name: texts * 2 for name, texts in TEXTS.items()}
    with pytest.raises(InputError, match="each language by itself"):
        make().compute(**texts, languages=["en", "zh"])

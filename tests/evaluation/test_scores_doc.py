"""What docs/scores.md says is so."""

import json
import re
from dataclasses import fields
from pathlib import Path

from medfinetune.evaluation.cases import load_cases
from medfinetune.evaluation.report_cases import report_cases
from medfinetune.evaluation.report_figures import KINDS, FigureKind
from medfinetune.evaluation.report_suite import CONDITIONS, score_reports
from tests.evaluation.test_report_suite import count, made

DOC = (Path(__file__).parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")


def test_two_runs_are_compared_as_it_says(phantom_dir, tmp_path, capsys):
    cases = report_cases(*load_cases(phantom_dir / "data", "test", ["caption", "report", "question"]))
    for name in ("new", "earlier"):
        (tmp_path / name).mkdir()
        texts = {case.id: case.reference if name == "new" else "" for case in cases}
        lines = (json.dumps({"id": identity, "generated": text}) for identity, text in texts.items())
        (tmp_path / name / "predictions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", DOC, re.DOTALL)[1]
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

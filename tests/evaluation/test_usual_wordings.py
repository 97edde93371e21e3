"""Usual wordings, most of them once read wrongly: sentences/usual_wordings.yaml."""

from pathlib import Path

import pytest
import yaml

from medfinetune.evaluation.findings import read_statements
from medfinetune.evaluation.lexicon import load_lexicon

FILE = Path(__file__).parent / "sentences" / "usual_wordings.yaml"
ROWS = [
    (name, row["text"], row["reads"])
    for name, rows in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()
    for row in rows
]


@pytest.mark.parametrize(("lexicon", "text", "reads"), ROWS)
def test_usual_wordings(lexicon, text, reads):
    assert sorted(map(str, read_statements(text, load_lexicon(lexicon)))) == sorted(reads)

"""Hand-made sentences with what they state: sentences/*.yaml."""

from pathlib import Path

import pytest
import yaml

from medfinetune.evaluation.findings import read_statements
from medfinetune.evaluation.lexicon import load_lexicon

FOLDER = Path(__file__).parent / "sentences"
DOMAINS = ("chest", "knee", "skin", "slake", "phantom")


def _sentences(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for part in content if isinstance(content, list) else [content]:
        for language in ("en", "zh"):
            for row in part[language]:
                yield {"hard": False} | row | {"language": language, "lexicon": part["lexicon"]}


def _wrong(rows):
    wrong = []
    for row in rows:
        read = sorted(map(str, read_statements(row["text"], load_lexicon(row["lexicon"]))))
        if read != sorted(row["reads"]):
            wrong.append((row["text"], sorted(row["reads"]), read))
            print(f"{row['lexicon']}: {row['text']}\n  states {sorted(row['reads'])}\n  read   {read}")
    return wrong


SENTENCES = [row for domain in DOMAINS for row in _sentences(FOLDER / f"{domain}.yaml")]


def test_the_set_is_large_and_half_of_it_hard():
    assert len({row["text"] for row in SENTENCES}) == len(SENTENCES) == 200
    for language in ("en", "zh"):
        assert sum(row["language"] == language for row in SENTENCES) == 100
        assert sum(row["language"] == language and row["hard"] for row in SENTENCES) == 50


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("hard", [False, True])
def test_sentences_are_read_rightly(language, hard):
    rows = [row for row in SENTENCES if row["language"] == language and row["hard"] == hard]
    assert 1 - len(_wrong(rows)) / len(rows) >= 0.95


def test_every_statement_names_what_its_lexicon_knows():
    for row in SENTENCES:
        lexicon = load_lexicon(row["lexicon"])
        for statement in row["reads"]:
            name, _, rest = statement.partition(" ")
            finding, _, value = name.partition("=")
            assert finding in lexicon.findings, statement
            if value:
                assert any(f"{value} {rest}".startswith(known) for known in lexicon.findings[finding].values), statement


def test_the_docs_tell_how_many_held_out_sentences_are_read_rightly():
    rows = list(_sentences(FOLDER / "held_out.yaml"))
    assert not {row["text"] for row in rows} & {row["text"] for row in SENTENCES}
    told = f"{len(rows) - len(_wrong(rows))} of {len(rows)} held-out sentences"
    assert told in (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")

from pathlib import Path

import pytest

from medfinetune.errors import InputError
from medfinetune.evaluation.config import EvaluateConfig
from medfinetune.parser import parse

RECIPES = Path(__file__).parents[2] / "recipes" / "evaluate"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_parses_and_names_its_command(path):
    config = parse(EvaluateConfig, "", argv=["--config", str(path)])
    assert config.encoder_dir or config.decoder_dir
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    assert first_line == f"# python recipes/evaluate.py --config recipes/evaluate/{path.name}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"encoder_dir": "e", "split": "dev"}, "split: 'dev'"),
        ({"encoder_dir": "e", "pool_size": 1}, "pool_size"),
        ({"encoder_dir": "e", "max_cases": 0}, "max_cases"),
        ({"decoder_dir": "e", "tasks": []}, "tasks"),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        EvaluateConfig(data_dir="data", output_dir="out", **arguments)

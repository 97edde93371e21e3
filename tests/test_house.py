"""What DESIGN asks of the whole: imports go one way, every YAML is valid, names are lazy."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import medfinetune
from medfinetune.data.prepare import PrepareConfig
from medfinetune.decoder.config import MllamaSFTConfig
from medfinetune.encoder.config import SigLIPConfig
from medfinetune.evaluation.config import EvaluateConfig
from medfinetune.inference.config import IndexConfig, ReportConfig
from medfinetune.parser import parse
from medfinetune.preflight.config import read_arguments

REPO = Path(__file__).parents[1]
CONFIGS = {"prepare": PrepareConfig, "encoder": SigLIPConfig, "decoder": MllamaSFTConfig, "evaluate": EvaluateConfig}
CONFIGS |= {"index": IndexConfig, "report": ReportConfig}
YAMLS = sorted((REPO / "recipes").glob("*/*.yaml"))
# A module may import from its own tier and from those to the left.
TIERS = [
    {"errors"},
    {"distributed", "parser", "data", "encoder.text"},
    {"encoder.config", "decoder.config", "encoder.parameter_groups"},
    {"encoder.loss", "encoder.collator", "encoder.metrics", "encoder.model", "encoder.cache"}
    | {"encoder.exact", "encoder.labels", "encoder.adapter", "encoder.sampler", "encoder.augment", "encoder.sides"}
    | {"encoder.checks"}
    | {"encoder.temperature"}
    | {"decoder.collator", "decoder.model", "decoder.generation", "decoder.vision", "tiny", "training", "preflight"}
    | {"decoder.chat_tokens", "decoder.cross_attention", "decoder.masks", "decoder.vision_cache"}
    | {"decoder.head", "decoder.recompute", "decoder.sampler", "decoder.rows", "decoder.merge"}
    | {"decoder.evidence", "decoder.sampling"}
    | {"encoder.preflight", "decoder.preflight"},
    {"evaluation", "demo"},
    {"encoder.trainer", "encoder.wise_ft", "decoder.trainer", "decoder.predictions"},
    {"encoder.measure", "decoder.measure", "inference"},
]


def tier(module: str) -> int:
    name = module.removeprefix("medfinetune.")
    for number, members in enumerate(TIERS):
        if any(name == member or name.startswith(f"{member}.") for member in members):
            return number
    raise AssertionError(f"{module}: name its tier in {__file__}")


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def test_imports_go_one_way():
    checked = 0
    for path in sorted((REPO / "medfinetune").rglob("*.py")):
        module = ".".join(path.relative_to(REPO).with_suffix("").parts)
        if path.name == "__init__.py" and module.count(".") < 3:
            continue
        for other in imports_of(path):
            assert not other.startswith("recipes"), f"{module} imports {other}"
            if not other.startswith("medfinetune."):
                continue
            checked += 1
            assert tier(other) <= tier(module), f"{module} imports {other}"
            for one, two in (("encoder", "decoder"), ("decoder", "encoder")):
                wrong = module.startswith(f"medfinetune.{one}") and other.startswith(f"medfinetune.{two}")
                assert not wrong, f"{module} imports {other}"
    assert checked > 50


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_is_valid(path):
    text = path.read_text(encoding="utf-8")
    kind = path.parent.name
    launcher = "accelerate launch" if kind in ("encoder", "decoder") else "python"
    command = rf"# {launcher}( --multi_gpu --num_processes \d)? recipes/{kind}\.py --config recipes/{kind}/{path.name}"
    assert re.match(command, text)
    without_gpu = ["--dry_run"] if kind in ("encoder", "decoder") else []
    config = parse(CONFIGS[kind], "", argv=["--config", str(path), *without_gpu])
    for key, value in yaml.safe_load(text).items():
        resolved = getattr(config, key)
        assert getattr(resolved, "value", resolved) == value, key


def test_every_training_recipe_says_what_memory_it_takes():
    for path in YAMLS:
        if path.parent.name == "encoder":
            head = " ".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
            assert re.search(r"Memory \(counted, not measured.*\d GB", head), path


def test_every_decoder_recipe_says_what_memory_it_takes():
    recipes = sorted((REPO / "recipes" / "decoder").glob("*.yaml"))
    assert len(recipes) == 10
    for path in recipes:
        text = path.read_text(encoding="utf-8")
        comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
        assert "Counted, not measured" in comment, path.name
        assert " GB" in comment
        assert ("--multi_gpu" in text) == ("2gpu" in path.name or "zero3" in path.name)


@pytest.mark.parametrize("path", sorted((REPO / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_leaves_the_numbers_to_the_recipe(path):
    settings = json.loads(path.read_text(encoding="utf-8"))
    # Left out, gradients would be clipped at 1, whatever max_grad_norm says.
    keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    assert all(settings[key] == "auto" for key in keys)
    assert settings["zero_optimization"]["stage"] == int(path.stem[4])
    if path.stem != "zero2":
        assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    assert ("offload" in path.stem) == ("offload_param" in settings["zero_optimization"])


def documented_commands():
    found = []
    for path in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            words = line.strip().strip("`").split()
            scripts = [i for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py")]
            if scripts and words[0].endswith(("python", "accelerate")):
                found.append(pytest.param(words[scripts[0] :], id=f"{path.name}: {' '.join(words[scripts[0] :])[:60]}"))
    return found


@pytest.mark.parametrize("words", documented_commands())
def test_every_documented_command_is_accepted(words):
    """Scripts and configs exist, and every option is a key; the recipes' own tests run them."""
    script = REPO / words[0]
    assert script.is_file()
    if script.stem == "preflight":
        argv = [str(REPO / word) if word.startswith("recipes/") else word for word in words[1:]]
        assert read_arguments({kind: CONFIGS[kind] for kind in ("encoder", "decoder")}, argv)
    if script.stem in CONFIGS:
        without_gpu = ["--dry_run"] if script.stem in ("encoder", "decoder") else []
        argv = [str(REPO / word) if word.startswith("recipes/") else word for word in words[1:]]
        assert parse(CONFIGS[script.stem], "", argv=[*argv, *without_gpu])


def test_every_linked_file_exists():
    links = 0
    for path in [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"
            links += 1
    assert links > 4


def test_recipes_are_short():
    scripts = sorted((REPO / "recipes").glob("*.py"))
    assert len(scripts) >= 4
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 100, script


def test_import_is_lazy_and_complete():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, medfinetune; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPO,
    )
    assert done.stdout.strip() == "False"
    for name in medfinetune.__all__:
        assert getattr(medfinetune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = medfinetune.nothing

"""A small index of generated data by the tiny encoder, and the pipeline on it."""

from pathlib import Path

import pytest
import yaml

from medfinetune.inference.build import build_index
from medfinetune.inference.config import IndexConfig
from medfinetune.inference.pipeline import ReportPipeline

TASKS = {
    "device": {
        "none": {"prompts": ["No implanted device."], "statement": {"en": "No device", "zh": "无植入物"}},
        "pacemaker": {
            "prompts": ["Implanted pacemaker."],
            "statement": {"en": "Pacemaker in place", "zh": "可见起搏器"},
        },
    },
    "heart": {"enlarged": ["Heart enlarged.", "Enlarged heart."], "normal": ["Heart size normal."]},
}


@pytest.fixture(scope="session")
def zero_shot_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "zero_shot.yaml"
    path.write_text(yaml.safe_dump(TASKS, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def index_config(tiny_siglip, phantom_dir, zero_shot_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    return IndexConfig(
        str(tiny_siglip), str(phantom_dir / "data"), str(folder), zero_shot_file=str(zero_shot_file), tasks=["report"]
    )


@pytest.fixture(scope="session")
def index_dir(index_config) -> Path:
    """Not to be changed."""
    return build_index(index_config)


@pytest.fixture(scope="session")
def pipeline(tiny_siglip, tiny_mllama, index_dir) -> ReportPipeline:
    return ReportPipeline.from_pretrained(tiny_siglip, tiny_mllama, index_dir, device="cpu")


@pytest.fixture(scope="session")
def image_files(phantom_dir) -> list[Path]:
    return sorted((phantom_dir / "data" / "images").rglob("*.png"))

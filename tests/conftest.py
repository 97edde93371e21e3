"""Tiny checkpoints and generated data, made once; nothing is fetched from anywhere."""

import os

# Before torch and the Hugging Face libraries are imported, and inherited by every command that a test starts.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}

from pathlib import Path

import pytest
import torch

from medfinetune.data.phantom import Sizes, write_raw_folders
from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.tiny import make_tiny_mllama, make_tiny_siglip
from tests.real_data import REAL_DATA


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data are not at {REAL_DATA} (MEDFINETUNE_DATA_DIR)")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "siglip"
    make_tiny_siglip(path)
    return path


@pytest.fixture(scope="session")
def tiny_mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "mllama"
    make_tiny_mllama(path)
    return path


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw/` with a few images of every source, and `data/` prepared from it."""
    root = tmp_path_factory.mktemp("phantom")
    sizes = Sizes(knee=12, pad_ufes=8, slake=10, report_train=24, report_validation=6, report_test=8)
    write_raw_folders(root / "raw", sizes=sizes)
    raw = root / "raw"
    config = PrepareConfig(
        knee_dir=str(raw / "knee"),
        pad_ufes_dir=str(raw / "pad_ufes_20"),
        slake_dir=str(raw / "slake"),
        reports_file=str(raw / "reports.csv"),
        output_dir=str(root / "data"),
        num_workers=1,
    )
    prepare(config)
    return root

"""The real data, where they are at hand."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("MEDFINETUNE_DATA_DIR", REPO.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data are not at {REAL_DATA} (MEDFINETUNE_DATA_DIR)")
    return REAL_DATA

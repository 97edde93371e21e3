"""Where the repository and the real data lie."""

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("MEDFINETUNE_DATA_DIR", REPO.parent / "shared" / "data"))

"""A tiny model and a few pairs, which most tests of training start from."""

import pytest

from medfinetune.data.load import load_pairs
from medfinetune.encoder.model import load_encoder


@pytest.fixture
def loaded(phantom_dir, tiny_siglip):
    """Model, processor, 32 training pairs and the validation pairs."""
    pairs = load_pairs(phantom_dir / "data")
    model, processor = load_encoder(str(tiny_siglip))
    return model, processor, pairs["train"].select(range(32)), pairs["validation"]

import shutil

import pytest
import torch

from medfinetune.data.load import load_pairs
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.model import load_encoder
from medfinetune.errors import InputError


@pytest.fixture(scope="module")
def loaded(phantom_dir, tiny_siglip):
    return load_pairs(phantom_dir / "data", "train"), load_encoder(str(tiny_siglip))[1]


def test_same_batch_as_on_the_fly(loaded, tmp_path):
    pairs, processor = loaded
    cache = PairCache(pairs, processor, tmp_path)
    rows = [0, 7, len(pairs) - 1]
    ours, plain = cache.collate([cache[i] for i in rows]), SigLIPCollator(processor)([pairs[i] for i in rows])
    assert torch.equal(ours["input_ids"], plain["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], plain["pixel_values"], atol=1e-6, rtol=0)
    assert torch.equal(ours["group_ids"], plain["group_ids"])
    assert len(cache) == len(pairs)


def test_made_once_and_again_when_the_images_change(loaded, tmp_path, monkeypatch):
    pairs, processor = loaded
    resized = []
    resize = SigLIPCollator.resize
    monkeypatch.setattr(SigLIPCollator, "resize", lambda self, image: resized.append(1) or resize(self, image))
    PairCache(pairs, processor, tmp_path)
    distinct = len({hashes[0] for hashes in pairs["pixel_sha256"]})
    assert len(resized) == distinct < len(pairs)
    PairCache(pairs, processor, tmp_path)
    assert len(resized) == distinct
    PairCache(pairs.select(range(4)), processor, tmp_path)
    assert len(resized) > distinct


def test_an_image_that_is_gone_is_named(loaded, phantom_dir, tmp_path):
    pairs, processor = loaded
    shutil.copytree(phantom_dir / "data", tmp_path / "data")
    copied = load_pairs(tmp_path / "data", "train")
    sha256 = copied.select_columns(["pixel_sha256"])[3]["pixel_sha256"][0]
    (path,) = (tmp_path / "data" / "images").rglob(f"{sha256}*")
    path.unlink()
    with pytest.raises(InputError, match=r"pair \S+: its image does not open"):
        PairCache(copied, processor, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(InputError, match="no pairs"):
        PairCache(pairs.select([]), processor, tmp_path)

import copy
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from medfinetune.data.load import load_pairs
from medfinetune.encoder import cache as cache_module
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


@pytest.fixture
def resized(monkeypatch):
    """Grows by one for each image that is resized in this process."""
    resized, resize = [], SigLIPCollator.resize
    monkeypatch.setattr(SigLIPCollator, "resize", lambda self, image: resized.append(1) or resize(self, image))
    return resized


def is_right(cache, pairs, processor):
    resize = SigLIPCollator(processor).resize
    return all(np.array_equal(cache[i]["pixels"], resize(pairs[i]["images"][0])) for i in range(len(pairs)))


def test_made_once_and_again_when_the_images_change(loaded, tmp_path, resized):
    pairs, processor = loaded
    PairCache(pairs, processor, tmp_path)
    distinct = len({hashes[0] for hashes in pairs["pixel_sha256"]})
    assert len(resized) == distinct < len(pairs)
    PairCache(pairs, processor, tmp_path)
    assert len(resized) == distinct
    PairCache(pairs.select(range(4)), processor, tmp_path)
    assert len(resized) > distinct


@pytest.mark.parametrize(
    "changed", [{"resample": 0}, {"size": {"height": 24, "width": 48}}, {"kind": "SiglipImageProcessor"}]
)
def test_made_again_when_images_are_resized_otherwise(loaded, tmp_path, resized, changed):
    pairs, processor = loaded[0].select(range(4)), loaded[1]
    PairCache(pairs, processor, tmp_path)
    other = copy.deepcopy(processor)
    if "kind" in changed:
        # By name the one that works with torchvision, which calls itself the same in its settings.
        other.image_processor.__class__ = type(changed["kind"], (type(other.image_processor),), {})
    else:
        vars(other.image_processor).update(changed)
    before = len(resized)
    cache = PairCache(pairs, other, tmp_path)
    assert len(resized) == 2 * before
    PairCache(pairs, processor, tmp_path)  # whose file is still there
    assert len(resized) == 2 * before
    assert is_right(cache, pairs, other)


def test_what_follows_the_resizing_needs_no_new_file(loaded, tmp_path, resized):
    pairs, processor = loaded[0].select(range(4)), loaded[1]
    PairCache(pairs, processor, tmp_path)
    other = copy.deepcopy(processor)
    other.image_processor.image_mean = [0.4, 0.4, 0.4]
    before = len(resized)
    PairCache(pairs, other, tmp_path)
    assert len(resized) == before


def test_sets_of_one_size_have_files_of_their_own(loaded, tmp_path, resized):
    """Training and validation pairs with as many images each."""
    pairs, processor = loaded
    first_of = {hashes[0]: i for i, hashes in enumerate(pairs["pixel_sha256"])}
    rows = list(first_of.values())
    sets = [pairs.select(rows[:5]), pairs.select(rows[5:10])]
    for _ in range(2):
        caches = [PairCache(some, processor, tmp_path) for some in sets]
        assert len(resized) == 10
    assert all(is_right(cache, some, processor) for cache, some in zip(caches, sets, strict=True))


def test_deleted_or_cut_off_it_is_made_again(loaded, tmp_path):
    pairs, processor = loaded[0].select(range(4)), loaded[1]
    PairCache(pairs, processor, tmp_path)
    (path,) = tmp_path.iterdir()
    for spoil in (path.unlink, lambda: os.truncate(path, 100)):
        spoil()
        assert is_right(PairCache(pairs, processor, tmp_path), pairs, processor)
        assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_is_killed_leaves_nothing_that_is_taken_for_whole(loaded, tmp_path):
    pairs, processor = loaded[0].select(range(6)), loaded[1]

    def killed():
        resize, calls = SigLIPCollator.resize, []

        def dies(self, image):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return resize(self, image)

        SigLIPCollator.resize = dies
        PairCache(pairs, processor, tmp_path)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not list(tmp_path.glob("*.uint8"))
    assert is_right(PairCache(pairs, processor, tmp_path), pairs, processor)


def test_all_cores_make_the_same_file(loaded, tmp_path, monkeypatch, resized):
    pairs, processor = loaded
    PairCache(pairs, processor, tmp_path / "one")
    alone = len(resized)
    monkeypatch.setattr(cache_module, "_IMAGES_A_WORKER", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    PairCache(pairs, processor, tmp_path / "two")
    assert len(resized) == alone  # it was done in other processes
    (one,), (two,) = ((tmp_path / name).iterdir() for name in ("one", "two"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("images_a_worker", [1, 10**6])
def test_an_image_that_is_gone_is_named(loaded, phantom_dir, tmp_path, monkeypatch, images_a_worker):
    monkeypatch.setattr(cache_module, "_IMAGES_A_WORKER", images_a_worker)
    pairs, processor = loaded
    shutil.copytree(phantom_dir / "data", tmp_path / "data")
    copied = load_pairs(tmp_path / "data", "train")
    sha256 = copied.select_columns(["pixel_sha256"])[3]["pixel_sha256"][0]
    (path,) = (tmp_path / "data" / "images").rglob(f"{sha256}*")
    path.unlink()
    with pytest.raises(InputError, match=r"^pair \S+: its image does not open \([^\n]*\)$"):
        PairCache(copied, processor, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(InputError, match="no pairs"):
        PairCache(pairs.select([]), processor, tmp_path)


def test_a_full_disk_is_said_in_one_line(loaded, tmp_path, monkeypatch):
    """`os.fsync` stands for the disk, which cannot be filled here."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"siglip_48px_\w+\.uint8: the resized images cannot be written .*No space"):
        PairCache(loaded[0].select(range(2)), loaded[1], tmp_path)
    assert not list(tmp_path.iterdir())

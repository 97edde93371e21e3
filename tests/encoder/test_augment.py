import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medfinetune.data.load import load_pairs
from medfinetune.encoder.augment import AugmentedPairs, alter, augment_pairs, mirror_texts
from medfinetune.encoder.cache import PairCache
from medfinetune.encoder.collator import SigLIPCollator
from medfinetune.encoder.trainer import SigLIPTrainer
from tests.encoder.test_trainer import config

TEXTS = ["Left knee, grade 2.", "left ventricle dilated", "no fracture", "右膝正常"]


@pytest.fixture
def pairs(phantom_dir):
    rows = load_pairs(phantom_dir / "data", "train").select(range(12))
    texts = [TEXTS[i % 4] for i in range(12)]
    return rows.remove_columns("text").add_column("text", texts)


@pytest.fixture
def make_cache(loaded, tmp_path):
    return functools.partial(PairCache, processor=loaded[1], cache_dir=tmp_path / "cache")


def picture():
    """Smooth, without any symmetry."""
    y, x = np.mgrid[0:48, 0:48] / 48
    channels = [200 * x + 20 * y, 120 * y**2 + 90 * x * y, 255 * np.exp(-8 * ((x - 0.7) ** 2 + (y - 0.3) ** 2))]
    return np.stack(channels, axis=-1).astype(np.uint8)


def slow(pixels, degrees=0.0, side=1.0, x=0.0, y=0.0, mirror=False, brightness=1.0, contrast=1.0):
    """Step by step, in double precision, rounded at the end."""
    image = torch.from_numpy(pixels[:, ::-1].copy() if mirror else pixels).permute(2, 0, 1)[None].double()
    height, width = pixels.shape[:2]
    cos, sin = side * math.cos(math.radians(degrees)), side * math.sin(math.radians(degrees))
    theta = [[cos, -sin * height / width, x * (1 - side)], [sin * width / height, cos, y * (1 - side)]]
    grid = F.affine_grid(torch.tensor([theta], dtype=torch.float64), [1, 3, height, width], align_corners=False)
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    mean = image.mean()
    image = (((image - mean) * contrast + mean) * brightness).round().clamp(0, 255)
    return image[0].permute(1, 2, 0).numpy()


def turned_by_pillow(pixels, degrees):
    return np.asarray(Image.fromarray(pixels).rotate(degrees, Image.Resampling.BILINEAR))


def difference(one, other, inside=slice(None)):
    return np.abs(np.asarray(one, float)[inside, inside] - np.asarray(other, float)[inside, inside]).max()


def as_planes(pixels):
    """The same pixels, as the cache has them."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)


def test_nothing_is_changed_at_zero_strength():
    pixels = picture()
    assert alter(pixels) is pixels
    # Nor by the arithmetic itself.
    assert np.array_equal(alter(pixels, degrees=360), pixels)
    assert np.array_equal(alter(pixels, brightness=1 + 1e-9), pixels)
    assert np.array_equal(alter(pixels, mirror=True), pixels[:, ::-1])


@pytest.mark.parametrize("kind", ["colour", "grey", "oblong"])
@pytest.mark.parametrize("mirror", [False, True])
def test_as_step_by_step(kind, mirror):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    if kind == "grey":
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    if kind == "oblong":
        pixels = np.tile(pixels, (1, 2, 1))
    light, place = {"brightness": 1.08, "contrast": 0.9}, {"degrees": 5, "side": 0.95, "x": 0.3, "y": -0.8}
    for values in (light, place, light | place, place | {"degrees": 0.0}, {"contrast": 1.3}):
        ours, theirs = alter(as_planes(pixels), mirror=mirror, **values), slow(pixels, mirror=mirror, **values)
        assert ours.dtype == np.uint8
        assert ours.shape == pixels.shape
        assert difference(ours, theirs) <= 1
        assert np.abs(ours - theirs).mean() < 0.01  # one step, and only where a value lies in the middle of two
        assert np.array_equal(alter(pixels, mirror=mirror, **values), ours)


@pytest.mark.parametrize("degrees", [90, -90, 180, 12, -7.5])
def test_turned_as_pillow_turns(degrees):
    pixels = picture()
    ours = alter(pixels, degrees=degrees)
    inside = slice(None) if degrees % 90 == 0 else slice(8, 40)
    assert difference(ours, turned_by_pillow(pixels, degrees), inside) <= 2
    assert difference(ours, turned_by_pillow(pixels, -degrees), inside) > 20 or degrees == 180


def test_an_oblong_image_is_not_sheared():
    pixels = np.tile(picture(), (1, 2, 1))
    ours = alter(pixels, degrees=10)
    assert np.abs(ours[12:36, 24:72].astype(float) - turned_by_pillow(pixels, 10)[12:36, 24:72]).max() <= 30
    assert np.abs(ours[12:36, 24:40].astype(float) - turned_by_pillow(pixels, 10)[12:36, 24:40]).max() <= 2


@pytest.mark.parametrize(
    ("x", "y", "box"), [(-1, -1, (0, 0, 24, 24)), (1, -1, (24, 0, 48, 24)), (0, 1, (12, 24, 36, 48))]
)
def test_cut_where_it_says(x, y, box):
    pixels = picture()
    ours = alter(pixels, side=0.5, x=x, y=y)
    plain = Image.fromarray(pixels).crop(box).resize((48, 48), Image.Resampling.BILINEAR)
    assert difference(ours, plain, slice(2, 46)) <= 3


def test_light():
    pixels = np.array([[[100, 100, 100], [200, 200, 200]]], dtype=np.uint8)
    assert alter(pixels, brightness=1.2)[0, :, 0].tolist() == [120, 240]
    assert alter(pixels, brightness=2.0)[0, :, 0].tolist() == [200, 255]
    assert alter(pixels, contrast=0.5)[0, :, 0].tolist() == [125, 175]
    assert alter(pixels, contrast=4.0)[0, :, 0].tolist() == [0, 255]


def test_off_by_default_and_off_in_evaluation(pairs, make_cache, loaded, tmp_path):
    assert type(augment_pairs(pairs, make_cache, config(tmp_path))) is PairCache
    args = config(tmp_path, rotation_degrees=10, brightness=0.2, max_steps=1, eval_steps=1)
    train, validation = augment_pairs(pairs, make_cache, args), make_cache(loaded[3])
    trainer = SigLIPTrainer(loaded[0], args, train, validation, loaded[1], data_collator=train.collate)
    assert isinstance(trainer.train_dataset, AugmentedPairs)
    (batch,) = [batch["pixel_values"] for batch in trainer.get_eval_dataloader()][:1]
    plain = SigLIPCollator(loaded[1]).images([loaded[3][i]["images"][0] for i in range(len(batch))])["pixel_values"]
    torch.testing.assert_close(batch.cpu(), plain, atol=1e-6, rtol=0)
    trainer.train()


def test_seed_epoch_and_pair_decide(pairs, make_cache, tmp_path):
    args = config(tmp_path, rotation_degrees=10, crop_scale_min=0.8, brightness=0.2, contrast=0.2, seed=5)
    one, two = augment_pairs(pairs, make_cache, args), augment_pairs(pairs, make_cache, args)
    first = [one[i]["pixels"] for i in range(4)]
    assert all(np.array_equal(first[i], two[i]["pixels"]) for i in (3, 1, 2, 0))
    plain = make_cache(pairs)
    for i in range(4):
        assert first[i].dtype == np.uint8
        assert not np.array_equal(first[i], plain[i]["pixels"])
        assert torch.equal(one[i]["input_ids"], plain[i]["input_ids"])
    one.set_epoch(1)
    assert not np.array_equal(first[0], one[0]["pixels"])
    other = augment_pairs(pairs, make_cache, config(tmp_path, rotation_degrees=10, seed=6))
    assert not np.array_equal(first[0], other[0]["pixels"])


def test_workers_draw_the_same_and_hear_of_the_epoch(pairs, make_cache, tmp_path):
    args = config(tmp_path, rotation_degrees=10)
    train = augment_pairs(pairs, make_cache, args)
    loader = torch.utils.data.DataLoader(
        train, batch_size=4, num_workers=2, persistent_workers=True, collate_fn=train.collate
    )
    for epoch in range(2):
        train.set_epoch(epoch)
        expected = [train.collate([train[i] for i in range(start, start + 4)]) for start in (0, 4, 8)]
        for batch, ours in zip(loader, expected, strict=True):
            assert torch.equal(batch["pixel_values"], ours["pixel_values"])


def test_the_trainer_tells_the_epoch(pairs, make_cache, loaded, tmp_path):
    args = config(tmp_path, rotation_degrees=10, eval_strategy="no", per_device_train_batch_size=12, max_steps=3)
    train = augment_pairs(pairs, make_cache, args)
    seen = []
    train.set_epoch = seen.append
    SigLIPTrainer(loaded[0], args, train, None, loaded[1], data_collator=train.collate).train()
    assert list(dict.fromkeys(seen)) == [0, 1, 2]


def test_mirrored_with_its_sides(pairs, make_cache, loaded, tmp_path, capsys):
    train = augment_pairs(pairs, make_cache, config(tmp_path, horizontal_flip_probability=1.0))
    plain = make_cache(pairs)
    assert "9 of 12 training pairs may be mirrored" in capsys.readouterr().out
    swapped = SigLIPCollator(loaded[1]).texts(["Right knee, grade 2.", TEXTS[1], "no fracture", "左膝正常"])[
        "input_ids"
    ]
    for i in range(12):
        pixels = plain[i]["pixels"] if i % 4 == 1 else plain[i]["pixels"][:, ::-1]
        assert np.array_equal(train[i]["pixels"], pixels)
        assert torch.equal(train[i]["input_ids"].long(), swapped[i % 4])
    batch = train.collate([train[i] for i in range(12)])
    assert torch.equal(batch["input_ids"][0], swapped[0])
    # The images stand in the file once.
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 1


def test_how_often(pairs, make_cache, tmp_path):
    train = augment_pairs(pairs, make_cache, config(tmp_path, horizontal_flip_probability=0.5))
    plain, mirrored = make_cache(pairs), 0
    for epoch in range(40):
        train.set_epoch(epoch)
        mirrored += sum(not np.array_equal(train[i]["pixels"], plain[i]["pixels"]) for i in (0, 2, 3))
    assert 40 <= mirrored <= 80


def test_groups_of_a_mirrored_pair(pairs, make_cache, tmp_path):
    """Where rows carry group ids, the mirrored image and its swapped text are others than the plain ones."""
    caches = [make_cache(pairs), make_cache(mirror_texts(pairs)[0])]

    class WithGroups:
        texts, languages, image_keys, collate = caches[0].texts, caches[0].languages, caches[0].image_keys, None
        input_ids = caches[0].input_ids

        def __init__(self, cache, text_group):
            self.cache, self.text_group = cache, text_group

        def __getitem__(self, i):
            return self.cache[i] | {"group_ids": torch.tensor([7, self.text_group, 3, 4])}

    args = config(tmp_path, horizontal_flip_probability=1.0)
    train = AugmentedPairs(WithGroups(caches[0], 1), args, WithGroups(caches[1], 2), [True, False] * 6)
    assert train[0]["group_ids"].tolist() == [-7, 2, 3, 4]
    assert train[1]["group_ids"].tolist() == [7, 1, 3, 4]


def test_labels_are_swapped_too(pairs):
    labels = ["left", "grade 2", None, "dextrocardia", *[""] * 8]
    pairs = pairs.remove_columns("label").add_column("label", labels, feature=pairs.features["label"])
    mirrored, can_mirror = mirror_texts(pairs)
    assert list(mirrored["label"])[:4] == ["right", "grade 2", None, "dextrocardia"]
    assert list(mirrored["text"])[:4] == ["Right knee, grade 2.", TEXTS[1], "no fracture", "左膝正常"]
    assert can_mirror[:4] == [True, False, True, False]
    assert mirrored.select_columns(["id"])[:]["id"] == pairs.select_columns(["id"])[:]["id"]

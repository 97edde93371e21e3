import io

import numpy as np
from PIL import Image, ImageDraw

from medfinetune.data.perceptual import MAX_DISTANCE, near_duplicates, perceptual_hash


def scene(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (200, 160), "black")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = (int(value) for value in rng.integers(5, 150, 3))
        draw.ellipse((x, y, x + r // 2, y + r // 3), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return image


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def test_the_same_picture_in_other_pixels_is_found_and_others_are_not():
    hashes = [perceptual_hash(scene(seed)) for seed in range(40)]
    hashes += [perceptual_hash(compressed(scene(3))), perceptual_hash(scene(7).resize((300, 240)))]
    assert {(i, j) for i, j, _ in near_duplicates(hashes)} == {(3, 40), (7, 41)}


def test_pairs_are_those_of_a_double_loop():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2, (1, 256)) ^ (rng.random((60, 256)) < 0.04)
    hashes = [np.packbits(row).tobytes().hex() for row in words.astype(np.uint8)]
    expected = {
        (i, j, int((words[i] != words[j]).sum()))
        for i in range(60)
        for j in range(i + 1, 60)
        if (words[i] != words[j]).sum() <= MAX_DISTANCE
    }
    assert set(near_duplicates(hashes)) == expected
    assert 0 < len(expected) < 60 * 59 // 2
    assert list(near_duplicates([])) == list(near_duplicates(hashes[:1])) == []


def test_a_plain_picture_has_a_hash():
    assert len(perceptual_hash(Image.new("RGB", (1, 1)))) == 64

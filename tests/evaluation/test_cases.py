import json

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medfinetune.data.chat import CHATS_FILE, PAIRS_FILE, write_chats
from medfinetune.data.schema import FEATURES
from medfinetune.errors import InputError
from medfinetune.evaluation.cases import (
    Chats,
    FirstImages,
    image_paths,
    load_cases,
    load_other_splits,
    pixel_keys,
    references,
)


@pytest.fixture
def data_dir(tmp_path):
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(12):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        rows.append(
            {
                **dict.fromkeys(FEATURES, ""),
                "id": f"case-{number}",
                "images": [f"images/{number}.png", "images/0.png"],
                "pixel_sha256": [f"b{number}", "a"],
                "text": f"text {number}",
                "language": "en",
                "task": "report" if number < 8 else "caption",
                "split": "train" if number == 7 else "test",
            }
        )
    pq.write_table(datasets.Dataset.from_list(rows, features=FEATURES).data.table, tmp_path / PAIRS_FILE)
    write_chats(tmp_path / PAIRS_FILE, tmp_path / CHATS_FILE)
    return tmp_path


def test_pairs_and_chats_stand_side_by_side(data_dir):
    lines = (data_dir / CHATS_FILE).read_text().splitlines()
    (data_dir / CHATS_FILE).write_text("\n".join(reversed(lines)))
    pairs, chats = load_cases(data_dir, "test", ["report"])
    assert list(pairs["id"]) == list(chats["id"]) == [f"case-{number}" for number in range(7)]
    assert references(chats) == list(pairs["text"])
    assert pixel_keys(pairs)[3] == ("a", "b3")
    assert image_paths(pairs, data_dir)[3] == "images/3.png"
    assert len(load_cases(data_dir, "test", ["report", "caption"])[0]) == 11


def test_max_cases_draws_by_seed(data_dir):
    drawn = [list(load_cases(data_dir, "test", ["report"], 3, seed)[0]["id"]) for seed in (0, 0, 1, 2, 3)]
    assert {len(ids) for ids in drawn} == {3}
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert len(load_cases(data_dir, "test", ["report"], 99)[0]) == 7


def test_images_are_those_of_the_rows_asked_for(data_dir):
    pairs, chats = load_cases(data_dir, "test", ["report"])
    images = FirstImages(pairs, [5, 2])
    assert [image.getpixel((0, 0))[0] for image in images] == [5, 2]
    assert images[0:1][0].getpixel((0, 0))[0] == 5
    own, swapped = Chats(chats), Chats(chats, [6, 5, 4, 3, 2, 1, 0])
    assert [chat["images"][0].getpixel((0, 0))[0] for chat in own] == list(range(7))
    assert [chat["images"][0].getpixel((0, 0))[0] for chat in swapped[:2]] == [6, 5]
    assert swapped[0]["messages"] == own[0]["messages"]
    assert len(swapped[0]["images"]) == 2


def test_what_is_missing_is_named(data_dir):
    with pytest.raises(InputError, match=r"no pair of the tasks question \(it has caption, report\)"):
        load_cases(data_dir, "test", ["question"])
    with pytest.raises(InputError, match="split validation is empty"):
        load_cases(data_dir, "validation", ["report"])
    with pytest.raises(InputError, match="no such folder"):
        load_cases(data_dir / "elsewhere", "test", ["report"])
    chats = [line for line in (data_dir / CHATS_FILE).read_text().splitlines() if json.loads(line)["id"] != "case-2"]
    (data_dir / CHATS_FILE).write_text("\n".join(chats))
    with pytest.raises(InputError, match="the pair case-2 has no chat"):
        load_cases(data_dir, "test", ["report"])


def test_nothing_is_learned_from_the_evaluated_split(data_dir):
    train, validation = load_other_splits(data_dir, "test", ["report", "caption"])
    assert list(train["id"]) == ["case-7"]
    assert validation is None
    assert load_other_splits(data_dir, "train", ["report"]) == (None, None)
    assert load_other_splits(data_dir, "test", ["caption"]) == (None, None)

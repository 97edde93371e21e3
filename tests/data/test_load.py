import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medfinetune.data import load as loading
from medfinetune.data.load import load_chats, load_pairs
from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.data.schema import FEATURES
from medfinetune.errors import InputError
from tests.data.raw_folders import picture, save, write_table


@pytest.fixture
def data_dir(tmp_path):
    rows = []
    for i in range(6):
        save(tmp_path / f"{i}.png", i)
        row = {"image": f"{i}.png|0.png" if i == 1 else f"{i}.png", "text": f"Report {i}.", "age": "50"}
        rows.append(row | {"split": "train" if i < 4 else "validation"})
    write_table(tmp_path / "reports.csv", rows)
    config = PrepareConfig(output_dir=str(tmp_path / "data"), reports_file=str(tmp_path / "reports.csv"), num_workers=1)
    prepare(config)
    return tmp_path / "data"


@pytest.mark.parametrize("load", [load_pairs, load_chats])
def test_images_are_decoded_at_access(data_dir, load):
    rows = load(data_dir, "train")
    assert len(rows) == 4
    assert [len(row["images"]) for row in rows] == [1, 2, 1, 1]
    image = rows[1]["images"][0]
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), np.asarray(picture(1)))


@pytest.mark.parametrize("load", [load_pairs, load_chats])
def test_loading_opens_no_image(data_dir, load):
    for path in (data_dir / "images").rglob("*.png"):
        path.unlink()
    assert len(load(data_dir)["train"]) == 4


@pytest.mark.parametrize("load", [load_pairs, load_chats])
def test_all_splits_from_anywhere(data_dir, load, monkeypatch):
    monkeypatch.chdir(data_dir.parent)
    rows = load("data")
    monkeypatch.chdir("/")
    assert {name: len(part) for name, part in rows.items()} == {"train": 4, "validation": 2}
    assert rows["validation"][0]["images"][0].size == (12, 10)


@pytest.mark.parametrize("load", [load_pairs, load_chats])
def test_many_rows_are_read_in_pieces_and_in_order(data_dir, load, monkeypatch):
    whole = load(data_dir)
    monkeypatch.setattr(loading, "_ROWS_AT_ONCE", 2)
    in_pieces = load(data_dir)
    for name in ("train", "validation"):
        assert in_pieces[name].data.num_rows == len(whole[name])
        assert [row["id"] for row in in_pieces[name]] == [row["id"] for row in whole[name]]
        assert in_pieces[name].features == whole[name].features


def test_columns(data_dir):
    pairs, chats = load_pairs(data_dir, "train"), load_chats(data_dir, "train")
    assert pairs.column_names == list(FEATURES)
    assert json.loads(pairs[0]["metadata"]) == {"age": "50"}
    lines = [json.loads(line) for line in (data_dir / "chat_instructions.jsonl").read_text().splitlines()]
    assert chats[1]["messages"] == lines[1]["messages"]
    assert chats[1]["messages"][0]["content"][0] == {"type": "image"}
    assert chats["id"] == [line["id"] for line in lines[:4]]


@pytest.mark.parametrize(
    ("load", "name"), [(load_pairs, "all_med_pairs.parquet"), (load_chats, "chat_instructions.jsonl")]
)
def test_wrong_input_is_named(data_dir, load, name):
    with pytest.raises(InputError, match=r"none: no such folder; recipes/prepare\.py makes it"):
        load(data_dir / "none")
    with pytest.raises(InputError, match="split 'dev' is none of train, validation, test"):
        load(data_dir, "dev")
    with pytest.raises(InputError, match="the split test is empty; there are train, validation"):
        load(data_dir, "test")
    content = (data_dir / name).read_bytes()
    (data_dir / name).write_bytes(content[:-30])
    with pytest.raises(InputError, match=f"{name}: (is no parquet|line 6 is no JSON)"):
        load(data_dir)
    (data_dir / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file; recipes/prepare.py makes it"):
        load(data_dir)


def test_a_missing_column_is_named(data_dir):
    table = pq.read_table(data_dir / "all_med_pairs.parquet")
    pq.write_table(table.drop_columns("group_id"), data_dir / "all_med_pairs.parquet")
    with pytest.raises(InputError, match="column group_id is missing"):
        load_pairs(data_dir)
    (data_dir / "chat_instructions.jsonl").write_text('{"id": "a", "images": [], "split": "train"}\n')
    with pytest.raises(InputError, match=r"chat_instructions\.jsonl: line 1: column messages is missing"):
        load_chats(data_dir)

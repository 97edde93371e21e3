import os
from collections import Counter

import pytest

from medfinetune.data.schema import Dropped, Record
from medfinetune.data.sources import chen
from medfinetune.errors import InputError
from tests.data.raw_folders import save


@pytest.fixture
def folder(tmp_path):
    files = {"train/0/9003175L.png": 1, "train/4/9003175R.png": 2, "val/1/9000099L.png": 3, "test/2/9000622R.png": 4}
    for name, seed in files.items():
        save(tmp_path / "ClsKLData" / "kneeKL224" / name, seed)
    return tmp_path


def read(folder, languages=("en", "zh"), split_by="published"):
    items = list(chen.read(folder, languages, split_by))
    return [x for x in items if isinstance(x, Record)], [x for x in items if isinstance(x, Dropped)]


def test_patient_side_grade_and_split_are_read_off_the_tree(folder):
    records, dropped = read(folder)
    assert not dropped
    assert len({record.id for record in records}) == len(records) == 8
    english = [record for record in records if record.language == "en"]
    assert [(r.patient_id, r.metadata["side"], r.label, r.split) for r in english] == [
        ("9000622", "right", "2", "test"),
        ("9003175", "left", "0", "train"),
        ("9003175", "right", "4", "train"),
        ("9000099", "left", "1", "validation"),
    ]
    assert all(f"{record.label}" in record.text for record in records)


def test_a_name_in_another_encoding_stops_nothing(folder):
    save(folder / "ClsKLData/kneeKL224/train/0" / os.fsdecode(b"9003176L\xb2.png"), 5)
    records, _ = read(folder)
    assert len(records) == 10


def test_splits_may_be_pooled(folder):
    records, _ = read(folder, ["en"], "pooled")
    assert {record.split for record in records} == {None}
    assert Counter(record.metadata["published_split"] for record in records) == {"train": 2, "validation": 1, "test": 1}


def test_two_sizes_of_a_knee_have_two_ids(folder):
    save(folder / "ClsKLData" / "kneeKL299" / "train/0/9003175L.png", 1)
    records, _ = read(folder, ["en"])
    assert len({record.id for record in records}) == 5


def test_what_cannot_be_used_has_a_reason(folder):
    save(folder / "ClsKLData/kneeKL224/auto_test/0/9000622R.png", 4)
    save(folder / "ClsKLData/kneeKL224/train/0/knee.png", 5)
    (folder / "ClsKLData/kneeKL224/train/0/._9003175L.png").write_bytes(b"x")
    (folder / "ClsKLData/kneeKL224/train/0/readme.txt").write_text("x")
    records, dropped = read(folder, ["en"])
    assert len(records) == 4
    assert sorted(item.reason for item in dropped) == [
        "auto_test shows the knees of test again",
        "file name names no patient and side",
    ]


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder \(chen_dir\)"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match="holds no folder like train/0"):
        read(tmp_path)

import csv

import pytest

from medfinetune.data.phantom.findings import ATTRIBUTES
from medfinetune.data.phantom.folders import Sizes, write_raw_folders
from medfinetune.errors import InputError

SMALL = Sizes(knee=4, pad_ufes=3, slake=3, report_train=40, report_validation=8, report_test=8)


def test_held_out_combinations_never_occur_in_training(tmp_path):
    # So many that a careless draw would meet a held-out one.
    sizes = Sizes(knee=1, pad_ufes=1, slake=1, report_train=150, report_validation=300, report_test=300)
    write_raw_folders(tmp_path, sizes=sizes)
    rows = list(csv.DictReader((tmp_path / "reports.csv").open(encoding="utf-8")))
    combinations = {}
    for row in rows:
        whole = tuple(row[attribute] for attribute in ATTRIBUTES)
        if "" in whole:
            assert row["split"] == "train"  # one part of the body only
            continue
        combinations.setdefault(row["split"], set()).add(whole)
    assert len(combinations["test"]) == sizes.report_test
    assert not combinations["train"] & combinations["test"]
    assert not combinations["train"] & combinations["validation"]
    assert not combinations["validation"] & combinations["test"]


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_raw_folders(tmp_path / name, seed, SMALL)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert len(files) > 60
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert (tmp_path / "a" / "reports.csv").read_bytes() != (tmp_path / "c" / "reports.csv").read_bytes()


def test_errors(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file"):
        write_raw_folders(tmp_path / "file", sizes=SMALL)
    with pytest.raises(InputError, match="leave none to train on"):
        write_raw_folders(tmp_path / "x", sizes=Sizes(0, 0, 0, 1, 1000, 2000))

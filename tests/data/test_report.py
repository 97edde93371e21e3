import pytest

from medfinetune.data.report import build_report
from medfinetune.data.schema import MISSING_IMAGE, Dropped

ROW = {"id": "a", "pixel_sha256": ["1"], "group_id": "g", "source": "knee", "split": "train", "language": "en"}
ROW |= {"task": "caption", "license": None, "label": "2"}


def test_counts():
    dropped = [Dropped("slake", f"question {i}", MISSING_IMAGE, f"{i // 2}.jpg") for i in range(30)]
    dropped += [Dropped("knee", "a.png", "duplicate"), Dropped("knee", "a.png", "duplicate")]
    report = build_report([ROW, ROW | {"id": "b", "split": "test"}], dropped, 34)
    assert (report["pairs"], report["images"], report["groups"]) == (2, 1, 1)
    assert report["dropped"] == {MISSING_IMAGE: 30, "duplicate": 2}
    assert report["dropped_by_source"] == {"knee": {"duplicate": 2}, "slake": {MISSING_IMAGE: 30}}
    assert report["missing_image_files"] == {"slake": 15}
    assert report["by_source_and_split"] == {"knee": {"test": 1, "train": 1}}
    assert report["by_license"] == {"": 2}
    assert [item["where"] for item in report["dropped_examples"]["duplicate"]] == ["a.png"]
    assert len(report["dropped_examples"][MISSING_IMAGE]) == 5
    assert report["warnings"][0] == "slake: NOTHING IS KEPT of its 30 records"


def test_a_lost_record_is_an_error():
    with pytest.raises(AssertionError):
        build_report([ROW], [], 2)

import pytest

from medfinetune.data.config import PrepareConfig
from medfinetune.data.images import StoredImage
from medfinetune.data.ledger import Ledger
from medfinetune.data.report import build_report
from medfinetune.data.schema import MISSING_IMAGE, Dropped, Pair, Record

CONFIG = PrepareConfig(output_dir="out", knee_dir="x")
LOOKS = "0" * 64


def enter(*rows: dict, dropped: list[Dropped] = ()) -> Ledger:
    ledger = Ledger()
    for n, row in enumerate(rows, start=1):
        values = {"id": f"r{n}", "source": "reports", "where": f"row {n}", "images": ["x"], "text": f"text {n}"}
        values |= {"language": "en", "task": "report"} | row
        pixels, looks, split = (values.pop(key, other) for key, other in (("pixels", "1"), ("looks", LOOKS), ("in", 0)))
        record = Record(**values)
        ledger.add(record)
        ledger.save(n, Pair(record, [StoredImage(pixels, f"{pixels}.png", 4, 2, looks)]))
        ledger.change("UPDATE pairs SET split = ?, group_id = 'g' WHERE n = ?", [(split, n)])
    for item in dropped:
        ledger.add(item)
    return ledger


def test_counts():
    dropped = [Dropped("slake", f"question {i}", MISSING_IMAGE, f"{i // 2}.jpg") for i in range(30)]
    dropped += [Dropped("knee", "a.png", "duplicate"), Dropped("knee", "a.png", "duplicate")]
    rows = [{"source": "knee", "label": "2"}, {"source": "knee", "label": "2", "in": 2}]
    report = build_report(enter(*rows, dropped=dropped), CONFIG, 34)
    assert (report["pairs"], report["images"], report["groups"]) == (2, 1, 1)
    assert report["dropped"] == {MISSING_IMAGE: 30, "duplicate": 2}
    assert report["dropped_by_source"] == {"knee": {"duplicate": 2}, "slake": {MISSING_IMAGE: 30}}
    assert report["missing_image_files"] == {"slake": 15}
    assert report["by_source_and_split"] == {"knee": {"test": 1, "train": 1}}
    assert report["labels_by_split"] == {"knee": {"2": {"test": 1, "train": 1}}}
    assert report["by_license"] == {"": 2}
    assert [item["where"] for item in report["dropped_examples"]["duplicate"]] == ["a.png"]
    assert len(report["dropped_examples"][MISSING_IMAGE]) == 5
    assert report["warnings"][0] == "slake: NOTHING IS KEPT of its 30 records"


def test_a_lost_record_is_an_error():
    with pytest.raises(AssertionError):
        build_report(enter({}), CONFIG, 2)


def test_licences_to_check():
    names = ["", "CC-BY-NC-4.0", "CC-BY-4.0", "non-commercial use", "CC-BY or CC-BY-SA (ambiguous)", "Cancer data"]
    names += ["Proprietary", "for research only", "CC BY ND 4.0"]
    found = build_report(enter(*({"license": name or None} for name in names)), CONFIG, 9)["licenses_to_check"]
    assert {item["license"]: item["problem"] for item in found} == {
        "": "blank",
        "CC-BY-NC-4.0": "non-commercial",
        "non-commercial use": "non-commercial",
        "CC-BY or CC-BY-SA (ambiguous)": "ambiguous",
        **dict.fromkeys(("Proprietary", "for research only", "CC BY ND 4.0"), "restricted"),
    }


def test_an_empty_validation_split_is_said():
    def warnings(*splits: int, **values) -> list[str]:
        config = PrepareConfig(output_dir="out", knee_dir="x", **values)
        return build_report(enter(*({"in": split} for split in splits)), config, len(splits))["warnings"]

    assert "no pair is in validation" in warnings(0, 0)[0]
    assert warnings(0, 1) == warnings(0, 0, validation_fraction=0.0) == []
    assert "no pair is in test" in warnings(0, 1, test_fraction=0.1)[0]


def test_near_duplicates_across_splits_come_first():
    rows = [
        {"pixels": "a", "looks": "0" * 64},
        {"pixels": "b", "looks": "1" + "0" * 63},
        {"pixels": "c", "looks": "7" + "0" * 63, "in": 1},
        {"pixels": "d", "looks": "f" * 64},
        # The same image again is no near-duplicate.
        {"pixels": "a", "looks": "0" * 64},
    ]
    near = build_report(enter(*rows), CONFIG, 5)["near_duplicates"]
    assert (near["compared"], near["num_pairs"], near["num_across_splits"]) == (4, 3, 2)
    assert [(pair["bits"], [image["file"] for image in pair["images"]]) for pair in near["pairs"]] == [
        (2, ["b.png", "c.png"]),
        (3, ["a.png", "c.png"]),
        (1, ["a.png", "b.png"]),
    ]
    assert [image["split"] for image in near["pairs"][0]["images"]] == ["train", "validation"]

from collections import Counter

import pytest

from medfinetune.data import kellgren_lawrence
from medfinetune.data.images import StoredImage
from medfinetune.data.schema import Dropped, Pair, Record
from medfinetune.data.sources import knee
from medfinetune.errors import InputError
from tests.data.raw_folders import KNEE_ROOT, picture, save, write_knee


def test_reads_both_graders_however_deep(tmp_path):
    write_knee(tmp_path / "a" / "b", {1: (0, 0), 2: (3, 3)})
    records = list(knee.read(tmp_path, ["en", "zh"], "agree"))
    assert len(records) == 8
    assert len({record.id for record in records}) == 8
    assert Counter((record.label, record.language) for record in records) == {
        (grade, language): 2 for grade in "03" for language in ("en", "zh")
    }
    assert all("3" in record.text for record in records if record.label == "3")
    inside = write_knee(tmp_path / "c", {1: (0, 0)}) / KNEE_ROOT / "MedicalExpert-II"
    assert [record.metadata["grader"] for record in knee.read(inside, ["en"], "II")] == ["II"]


def test_files_beside_images_are_left_alone_and_strange_folders_named(tmp_path):
    write_knee(tmp_path, {1: (0, 0)})
    grade = tmp_path / KNEE_ROOT / "MedicalExpert-I" / "0Normal"
    (grade / "Thumbs.db").write_bytes(b"x")
    (grade / "._NormalG0 (1).png").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x")
    save(tmp_path / KNEE_ROOT / "MedicalExpert-I" / "unsure" / "a.png", 9)
    items = list(knee.read(tmp_path, ["en"], "agree"))
    assert [item.reason for item in items if isinstance(item, Dropped)] == ["not in the folder of a grade"]
    assert len(items) == 3


def test_only_the_chosen_grader(tmp_path):
    items = list(knee.read(write_knee(tmp_path, {1: (0, 1)}), ["en"], "II"))
    assert [item.label for item in items if isinstance(item, Record)] == ["1"]
    assert [item.reason for item in items if isinstance(item, Dropped)] == ["grade is not by the chosen grader"]


def test_wordings_vary_and_stay():
    for language in ("en", "zh"):
        for grade in range(5):
            captions = {kellgren_lawrence.caption(grade, language, str(i)) for i in range(50)}
            assert len(captions) == 4
            assert all(
                str(grade) in text and kellgren_lawrence.DESCRIPTIONS[language][grade] in text for text in captions
            )
    assert kellgren_lawrence.caption(2, "en", "a") == kellgren_lawrence.caption(2, "en", "a")


def graded(sha: str, *grades: str) -> list[Pair]:
    return [
        Pair(
            Record(f"{sha}-{i}", "knee", f"{sha}-{i}", ["x"], "t", "en", "caption", label=g, metadata={"grader": "I"}),
            [StoredImage(sha, "x", 640, 161)],
        )
        for i, g in enumerate(grades)
    ]


def test_settle_counts_an_image_once():
    images = (graded("same", "1", "1", "1"), graded("disputed", "0", "0", "1", "1"), graded("alone", "4"))
    items = [item for pairs in images for item in kellgren_lawrence.settle(pairs)]
    assert [item.record.id for item in items if isinstance(item, Pair)] == ["same-0", "alone-0"]
    reasons = Counter(item.reason for item in items if isinstance(item, Dropped))
    assert reasons == {"duplicate": 5, "graders dispute the grade": 1}


@pytest.mark.parametrize(("bilateral", "expected"), [("keep", [""]), ("split", ["left", "right"]), ("drop", [])])
def test_strips_of_two_knees(tmp_path, bilateral, expected):
    folder = tmp_path / KNEE_ROOT / "MedicalExpert-I" / "2Mild"
    save(folder / "a.png", picture(1, (64, 16)))
    save(folder / "b.png", picture(2, (16, 16)))
    items = list(knee.read(tmp_path, ["en"], "I", bilateral))
    strips = [item for item in items if isinstance(item, Record) and "a.png" in item.images[0]]
    assert [item.images[0].partition("#part=")[2] for item in strips] == expected
    assert [item.metadata["bilateral"] for item in strips] == (
        [True] if bilateral == "keep" else [False] * len(expected)
    )
    assert {item.label for item in strips} <= {"2"}
    # Halves may not part ways.
    assert len({tuple(item.group_keys) for item in strips}) <= 1
    assert bilateral != "split" or strips[0].group_keys
    assert [item.reason for item in items if isinstance(item, Dropped)] == ["shows two knees"] * (bilateral == "drop")
    (single,) = (item for item in items if "b.png" in item.where)
    assert single.metadata["bilateral"] is False


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder \(knee_dir\)"):
        list(knee.read(tmp_path / "none", ["en"], "agree"))
    with pytest.raises(InputError, match="no image in a folder MedicalExpert-I"):
        list(knee.read(tmp_path, ["en"], "agree"))
    save(tmp_path / "MedicalExpert-I" / "0Normal" / "a.png", 1)
    with pytest.raises(InputError, match=r"MedicalExpert-II \(knee_grader: agree\)"):
        list(knee.read(tmp_path, ["en"], "agree"))
    assert len(list(knee.read(tmp_path, ["en"], "I"))) == 1

"""Folders and lists of images."""

import json
import os

import pytest

from medfinetune.data.images import hash_patient
from medfinetune.errors import InputError
from medfinetune.inference.config import ReportConfig
from medfinetune.inference.listing import count_requests, read_requests


def requests(path, **options):
    return list(read_requests(ReportConfig("e", "d", str(path), str(path.parent / "out"), **options)))


def test_a_folder_is_read_in_one_order(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a.dcm", "IM0001", ".hidden.png", "notes.md", "c/.DS_Store"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    found = requests(tmp_path / "in", language="zh")
    assert [request.id for request in found] == ["IM0001", "a.dcm", "b/1.JPG", "b/2.png"]
    assert found[2].images == [f"{tmp_path}/in/b/1.JPG"]
    assert {request.language for request in found} == {"zh"}


def test_names_in_a_folder_are_taken_as_they_are(tmp_path):
    folder = tmp_path / "in"
    (folder / ".thumbs").mkdir(parents=True)
    for name in ("a|b.png", " lead.png", "1.2.840.3", "scan.IMA", "x.jfif", ".thumbs/t.png", "notes.v2a"):
        (folder / name).touch()
    os.mkfifo(folder / "pipe")
    (folder / "gone.png").symlink_to("nowhere")
    found = requests(folder)
    names = [" lead.png", "1.2.840.3", "a|b.png", "gone.png", "scan.IMA", "x.jfif"]
    assert [request.images for request in found] == [[f"{folder}/{name}"] for name in names]


@pytest.mark.parametrize(
    ("cell", "patient"),
    [
        *((0, "0"), (7, "7"), (7.0, {"7", "7.0"}), ("1001.0", {"1001", "1001.0"})),
        *(("\uff11\uff10 ", "10"), (None, None), ("", None)),
    ],
)
def test_patients_are_read_as_prepare_reads_them(tmp_path, cell, patient):
    table = tmp_path / "list.jsonl"
    table.write_text(json.dumps({"image": "a.png", "patient_id": cell}) + "\n")
    assert requests(table)[0].patient == patient
    (tmp_path / "key").write_text("a key of more than sixteen bytes")
    hashed = requests(table, patient_key_file=str(tmp_path / "key"))[0].patient
    several = patient if isinstance(patient, set) else {patient} - {None}
    key = b"a key of more than sixteen bytes"
    assert (hashed if isinstance(hashed, frozenset) else {hashed} - {None}) == {hash_patient(p, key) for p in several}


def test_lists(tmp_path):
    text = tmp_path / "list.txt"
    text.write_text("one.png\n\n/abs/two.png#part=left\n")
    assert [r.images for r in requests(text)] == [[f"{tmp_path}/one.png"], ["/abs/two.png#part=left"]]
    table = tmp_path / "list.csv"
    table.write_text("image,language,patient_id,prompt\na.png|b.png,zh,7,\nc.png,,,Why?\n")
    first, second = requests(table)
    assert first.images == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
    assert (first.id, first.language, first.patient, first.prompt) == ("a.png|b.png", "zh", "7", None)
    assert (second.language, second.patient, second.prompt) == ("en", None, "Why?")
    lines = tmp_path / "list.jsonl"
    lines.write_text(json.dumps({"image": ["a.png", "b.png"], "patient_id": 7}) + "\n")
    assert requests(lines)[0].images == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]


def test_patients_are_hashed_as_prepare_did(tmp_path):
    (tmp_path / "key").write_text("a key of more than sixteen bytes\n")
    table = tmp_path / "list.csv"
    table.write_text("image,patient_id\na.png,7\n")
    found = requests(table, patient_key_file=str(tmp_path / "key"))
    assert found[0].patient == hash_patient("7", b"a key of more than sixteen bytes")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "image,language\na.png,fr\n", r"list.csv: row 2: language 'fr' is none of en, zh"),
        ("list.csv", "image,sex\na.png,f\n", r"list.csv: row 2: unknown column 'sex'"),
        ("list.csv", 'image\n""\n', r"list.csv: row 2: column image must name an image"),
        ("list.jsonl", '{"image": 3}\n', r"list.jsonl: line 1: column image must name an image"),
        ("list.jsonl", '{"image": "a\\u0000.png"}\n', r"list.jsonl: line 1: the name of the image holds a NUL"),
        ("list.jsonl", '{"image": "a.png", "prompt": 3}\n', r"list.jsonl: line 1: column prompt holds no text"),
        ("list.txt", "\n", r"list.txt: holds no image"),
        ("list.xlsx", "x", r"list.xlsx: must be a folder or end in .txt"),
        ("", "", r"nowhere: no such folder or file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, text, message):
    path = tmp_path / (name or "nowhere")
    if name:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        count_requests(ReportConfig("e", "d", str(path), str(tmp_path / "out")))

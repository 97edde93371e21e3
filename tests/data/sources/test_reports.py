import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfinetune.data.schema import MISSING_IMAGE, OTHER_LANGUAGE, Dropped, Record
from medfinetune.data.sources import reports
from medfinetune.errors import InputError
from tests.data.raw_folders import save, write_table

LANGUAGES = ("en", "zh")


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        save(tmp_path / "scans" / f"{i}.png", i)
    return tmp_path


def row(number: int = 0, **cells) -> dict:
    return {"image": f"scans/{number}.png", "text": f"No fracture in case {number}."} | cells


def read(path, columns=None) -> list[Record | Dropped]:
    return list(reports.read(path, LANGUAGES, columns or {}))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same(folder, suffix):
    rows = [row(0, age="55", split="val"), row(1, age="", split="")]
    path = folder / f"reports.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps(item) for item in rows) + "\n\n")
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_table(path, rows)
    first, second = read(path)
    assert (first.text, first.split, first.metadata) == ("No fracture in case 0.", "validation", {"age": "55"})
    assert first.images == [str(folder / "scans" / "0.png")]
    assert (second.split, second.metadata, second.license) == (None, {}, None)


def test_utf8_mark_and_quoted_newline(folder):
    text = 'Heart normal, "no" fracture.\n\nLeft effusion.'
    path = write_table(folder / "reports.csv", [row(0, text=text), row(1)], encoding="utf-8-sig")
    first, second = read(path)
    assert first.text == text
    assert second.where == "row 3"


def test_columns_by_mapping(folder):
    path = write_table(folder / "reports.csv", [{"file": "scans/0.png", "findings": "Normal.", "text": "note"}])
    (record,) = read(path, {"image": "file", "text": "findings"})
    assert (record.text, record.metadata) == ("Normal.", {"text": "note"})


def test_optional_columns(folder):
    cells = {
        "language": "zh-CN",
        "split": "Test",
        "patient_id": "7",
        "study_id": "9",
        "label": "normal",
        "license": "CC0",
        "task": "caption",
    }
    (record,) = read(write_table(folder / "reports.csv", [row(0, **cells)]))
    assert (record.language, record.split, record.patient_id) == ("zh", "test", "7")
    assert (record.label, record.license, record.task) == ("normal", "CC0", "caption")
    assert record.group_keys == ["study:reports:9"]


def test_language_is_told_by_the_characters(folder):
    records = read(write_table(folder / "reports.csv", [row(0), row(1, text="未见骨折。")]))
    assert [record.language for record in records] == ["en", "zh"]


def test_several_images_and_questions(folder):
    several = row(0, image="scans/0.png | scans/1.png")
    question = row(2, text="", task="question", question="Is there a fracture?", answer="No")
    path = folder / "reports.jsonl"
    path.write_text("\n".join(json.dumps(item) for item in (several, question, row(0, image=["scans/2.png"]))))
    first, second, third = read(path)
    assert first.images == [str(folder / "scans" / name) for name in ("0.png", "1.png")]
    assert (second.text, second.answer) == ("Is there a fracture? No", "No")
    assert third.images == [str(folder / "scans" / "2.png")]


def test_what_cannot_be_used_has_a_reason(folder):
    rows = [
        row(0, text=" "),
        row(1, image=""),
        row(2, image="scans/2.png|scans/9.png"),
        row(3, language="fr"),
        row(3, task="question"),
    ]
    rows = [{"language": "", "task": ""} | item for item in rows]
    items = read(write_table(folder / "reports.csv", rows))
    reasons = ["text is empty", "no image is named", MISSING_IMAGE, OTHER_LANGUAGE, "question or answer is empty"]
    assert [item.reason for item in items] == reasons
    assert items[2].detail == str(folder / "scans" / "9.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "image,split,text\nscans/0.png,holdout,x\n", r"a\.csv: row 2: split 'holdout' is none of"),
        ("a.csv", "image,task,text\nscans/0.png,poem,x\n", "row 2: task 'poem' is none of"),
        ("a.csv", "picture,text\nscans/0.png,x\n", "column image is missing; it has picture, text"),
        ("a.csv", "image,text\n", "holds no row"),
        ("a.csv", "", "holds no row"),
        ("a.csv", "image,text,text\nscans/0.png,a,b\n", "column 'text' stands more than once"),
        ("a.csv", "image,text\nscans/0.png,a,b\n", "row 2 has more cells than the header"),
        ("a.csv", 'image,text\nscans/0.png,"never closed\n', "is no CSV"),
        ("a.csv", "image,text\nscans/0.png,未见骨折\n".encode("gb18030"), "is not in UTF-8"),
        ("a.jsonl", '{"image": "x", "text": "y"}\n{"image"\n', "line 2 is no JSON"),
        ("a.jsonl", "[]\n", "line 1 is no JSON object"),
        ("a.parquet", "no parquet", "is no parquet"),
        ("a.xlsx", "x", r"must end in \.csv"),
    ],
)
def test_wrong_input_is_named(folder, name, content, message):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read(folder / name)


def test_missing_file_and_wrong_mapping(folder):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        read(folder / "none.csv")
    path = write_table(folder / "reports.csv", [row(0)])
    with pytest.raises(InputError, match="unknown column picture"):
        read(path, {"picture": "image"})
    with pytest.raises(InputError, match="column befund is missing"):
        read(path, {"label": "befund"})


def test_images_in_the_table_itself(folder):
    content = [(folder / "scans" / f"{i}.png").read_bytes() for i in range(3)]
    rows = [
        {"image": content[0], "text": "One."},
        {"image": content[1], "text": "Two."},
        {"image": None, "text": "None."},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "bytes.parquet")
    incoming = folder / "incoming"
    first, _, third = reports.read(folder / "bytes.parquet", LANGUAGES, {}, incoming)
    assert Path(first.images[0]).read_bytes() == content[0]
    assert third.reason == "no image is named"
    again, *_ = reports.read(folder / "bytes.parquet", LANGUAGES, {}, incoming)
    # The same name: a later run finds it in its journal.
    assert again.images == first.images
    # So the datasets library stores images: bytes, or a path.
    structs = [
        {"image": [{"bytes": content[2], "path": None}, {"bytes": None, "path": "scans/1.png"}], "text": "Both."}
    ]
    pq.write_table(pa.Table.from_pylist(structs), folder / "structs.parquet")
    (both,) = reports.read(folder / "structs.parquet", LANGUAGES, {}, incoming)
    assert Path(both.images[0]).read_bytes() == content[2]
    assert both.images[1] == str(folder / "scans" / "1.png")


def test_chats_are_passed_through(folder):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Fracture?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No <fracture>."}]},
    ]
    path = folder / "chats.jsonl"
    plain = [{"role": "user", "content": "Fracture?"}, {"role": "assistant", "content": "No."}]
    rows = [
        {"images": ["scans/0.png"], "messages": turns},
        {"images": ["scans/1.png", "scans/2.png"], "messages": plain},
        {"images": ["scans/1.png", "scans/2.png"], "messages": turns},
        {"images": ["scans/1.png"], "messages": [{"role": "user", "content": "Fracture?"}]},
    ]
    path.write_text("\n".join(json.dumps(item) for item in rows))
    first, second, third, fourth = read(path)
    assert (first.task, first.question, first.answer) == ("question", "Fracture?", "No <fracture>.")
    assert first.text == "Fracture? No <fracture>."
    assert first.metadata["messages"][1:] == turns[1:]
    assert second.metadata["messages"][0]["content"] == [{"type": "image"}] * 2 + [
        {"type": "text", "text": "Fracture?"}
    ]
    assert third.detail == "has places for 1 images, but 2 belong to it"
    assert fourth.detail == "needs a turn of the user and words of the assistant"


def test_only_a_chat_that_asks_becomes_a_question(folder):
    def turns(asked):
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": "Left."}]

    rows = [
        {"image": "scans/0.png", "messages": turns("哪一侧？")},
        {"image": "scans/1.png", "messages": turns("Write the report.")},
        {"image": "scans/1.png", "messages": turns("Which side?"), "text": "Left effusion."},
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records = read(folder / "chats.jsonl")
    assert [(record.task, record.text) for record in records] == [
        ("question", "哪一侧？ Left."),
        ("report", "Left."),
        ("report", "Left effusion."),
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_are_the_same_however_they_are_spelled(folder, suffix):
    ids = ["P１", "P1\u200b", " P1"] if suffix != "parquet" else [1.0, 1.0, 1.0]
    if suffix == "csv":
        ids[2:] = ["P1 "]
    rows = [row(i, patient_id=name, study_id=name, label=name) for i, name in enumerate(ids)]
    path = folder / f"reports.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_table(path, rows)
    wanted = "1" if suffix == "parquet" else "P1"
    for record in read(path):
        assert (record.patient_id, record.label) == (wanted, wanted)
        assert record.group_keys == [f"study:reports:{wanted}"]


def test_whole_numbers_lose_the_point_that_pandas_gave_them(folder):
    rows = [row(0, patient_id="4711.0", label="1.0", age="55.0"), row(1, patient_id="", label="1.5", age="56.0")]
    first, second = read(write_table(folder / "reports.csv", rows))
    assert (first.patient_id, first.label, first.metadata) == ("4711", "1.0", {"age": "55.0"})
    assert (second.patient_id, second.label) == (None, "1.5")
    pq.write_table(
        pa.table({"image": ["scans/0.png"] * 2, "text": ["a", "b"], "label": [2.0, None]}), folder / "a.parquet"
    )
    assert [record.label for record in read(folder / "a.parquet")] == ["2", None]


def test_not_a_number_is_missing(folder):
    path = folder / "a.jsonl"
    path.write_text(
        json.dumps(row(0, patient_id=float("nan"), label=float("nan"), age=float("nan")))
        + "\n"
        + json.dumps(row(1, image=float("nan")))
    )
    first, second = read(path)
    assert (first.patient_id, first.label, first.metadata) == (None, None, {})
    assert second.reason == "no image is named"


def test_an_image_cell_that_is_no_path_has_its_own_reason(folder):
    path = write_table(folder / "reports.csv", [row(0, image="No fracture. " * 30), row(1, image="a\0b"), row(2)])
    first, second, third = read(path)
    assert first.reason == second.reason == "image path cannot be followed"
    assert first.detail.endswith("File name too long")
    assert isinstance(third, Record)


def test_languages_by_their_names(folder):
    names = ["Chinese", "english", "zh-CN", "zh_Hans", "EN", "Chinese (simplified)", "中文", "Klingon"]
    records = read(write_table(folder / "reports.csv", [row(0, language=name) for name in names]))
    assert [record.language for record in records[:-1]] == ["zh", "en", "zh", "zh", "en", "zh", "zh"]
    assert records[-1].reason == OTHER_LANGUAGE
    assert records[-1].detail.startswith("klingon (understood are en, eng, english, ")


def test_a_table_of_questions_needs_no_text(folder):
    rows = [{"image": "scans/0.png", "question": "Fracture?", "answer": "No"}]
    (record,) = read(write_table(folder / "reports.csv", rows))
    assert (record.task, record.text, record.answer) == ("question", "Fracture? No", "No")
    rows = [row(0, question="", answer=""), row(1, text="", question="Left?", answer="Yes"), row(2, question="Why?")]
    rows = [{"answer": ""} | item for item in rows]
    first, second, third = read(write_table(folder / "reports.csv", rows))
    assert [record.task for record in (first, second, third)] == ["report", "question", "report"]


def test_rows_name_their_images_as_they_like(folder):
    rows = [{"image": "scans/0.png", "text": "a"}, {"images": ["scans/1.png"], "text": "b"}]
    for order in (rows, rows[::-1]):
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, order)))
        assert all(isinstance(item, Record) and not item.metadata for item in read(folder / "a.jsonl"))


def test_a_column_images_beside_image_is_kept_as_metadata(folder):
    (record,) = read(write_table(folder / "a.csv", [row(0, images="3")]))
    assert record.metadata == {"images": "3"}
    (record,) = read(write_table(folder / "a.csv", [row(0, image="", images="scans/1.png")]))
    assert (record.images, record.metadata) == ([str(folder / "scans" / "1.png")], {})


def test_a_column_that_is_missing_is_guessed(folder):
    path = write_table(folder / "a.csv", [{"imgae": "scans/0.png", "text": "a"}])
    with pytest.raises(InputError, match=r"column image is missing; it has imgae, text \(did you mean imgae\? "):
        read(path)
    path.write_text("image;text\nscans/0.png;Normal, no fracture.\n".replace(", ", " "))
    with pytest.raises(InputError, match="`reports_separator: ;`"):
        read(path)
    (record,) = reports.read(path, LANGUAGES, {}, separator=";")
    assert record.text == "Normal no fracture."


def test_a_full_disk_is_not_the_tables_fault(folder):
    content = (folder / "scans" / "0.png").read_bytes()
    pq.write_table(pa.Table.from_pylist([{"image": content, "text": "One."}]), folder / "bytes.parquet")
    (folder / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/incoming: cannot be written \(output_dir\)"):
        list(reports.read(folder / "bytes.parquet", LANGUAGES, {}, folder / "file" / "incoming"))

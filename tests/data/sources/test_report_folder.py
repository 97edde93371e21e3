import pytest

from medfinetune.data.schema import OTHER_LANGUAGE, Dropped, Record
from medfinetune.data.sources import report_folder
from medfinetune.errors import InputError
from tests.data.raw_folders import save


def read(folder, languages=("en", "zh"), encoding=None):
    items = list(report_folder.read(folder, languages, encoding))
    return {x.id: x for x in items if isinstance(x, Record)}, {x.where: x for x in items if isinstance(x, Dropped)}


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a.txt", "No fracture.\n")
    save(tmp_path / "a.png", 1)
    # Several images of one study, by number, beside a text of a similar name.
    write(tmp_path / "b" / "case1.txt", "未见骨折。", "utf-8-sig")
    write(tmp_path / "b" / "case10.txt", "Other case.")
    for i, name in enumerate(("case1_1.png", "case1-2.png", "case10.png")):
        save(tmp_path / "b" / name, 10 + i)
    # A text alone in its folder is about all images in it.
    write(tmp_path / "c" / "report.txt", "Left effusion.", "utf-16")
    save(tmp_path / "c" / "x.png", 20)
    save(tmp_path / "c" / "y.png", 21)
    return tmp_path


def test_texts_find_their_images(folder):
    records, dropped = read(folder)
    assert not dropped
    found = {name: [path.rpartition("/")[2] for path in record.images] for name, record in records.items()}
    assert found == {
        "reports-a": ["a.png"],
        "reports-b/case1": ["case1-2.png", "case1_1.png"],
        "reports-b/case10": ["case10.png"],
        "reports-c/report": ["x.png", "y.png"],
    }
    assert records["reports-b/case1"].text == "未见骨折。"
    assert records["reports-b/case1"].language == "zh"
    assert records["reports-c/report"].text == "Left effusion."


def test_what_cannot_be_used_has_a_reason(folder):
    write(folder / "d.txt", "No image here.")
    write(folder / "e.txt", " \n")
    write(folder / "f.txt", "未见骨折", "gb18030")
    save(folder / "e.png", 30)
    save(folder / "g.png", 31)
    (folder / "Thumbs.db").write_bytes(b"x")
    records, dropped = read(folder, ["en"])
    assert {where: item.reason for where, item in dropped.items()} == {
        "b/case1.txt": OTHER_LANGUAGE,
        "d.txt": "no image beside the text",
        "e.txt": "text is empty",
        "f.txt": "text is in another encoding",
        "g.png": "no text beside the image",
    }
    assert len(records) == 3


def test_another_encoding_by_its_name(tmp_path):
    write(tmp_path / "f.txt", "未见骨折", "gb18030")
    save(tmp_path / "f.png", 1)
    records, _ = read(tmp_path, encoding="gb18030")
    assert records["reports-f"].text == "未见骨折"


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder \(reports_dir\)"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no \.txt file"):
        read(tmp_path)
    with pytest.raises(InputError, match="reports_encoding: klingon: no such encoding"):
        read(tmp_path, encoding="klingon")


@pytest.mark.parametrize("alone", [True, False])
def test_a_longer_number_is_another_case(tmp_path, alone):
    write(tmp_path / "case1.txt", "One.")
    for i, name in enumerate(("case10.png", "case1_1.png", "case1 (2).png", "case1(3).png")[: 1 if alone else 4]):
        save(tmp_path / name, i)
    records, dropped = read(tmp_path)
    assert dropped["case10.png"].reason == "no text beside the image"
    if alone:
        assert dropped["case1.txt"].reason == "no image beside the text"
    else:
        assert len(records["reports-case1"].images) == 3
    # Where the name ends in no digit, nothing can be mistaken.
    write(tmp_path / "b" / "knee.txt", "Knee.")
    save(tmp_path / "b" / "knee1.png", 9)
    save(tmp_path / "b" / "other.png", 10)
    assert len(read(tmp_path)[0]["reports-b/knee"].images) == 1


def test_side_cars_are_no_images(tmp_path):
    write(tmp_path / "a.txt", "One.")
    save(tmp_path / "a.png", 1)
    for suffix in ("json", "XML", "csv"):
        write(tmp_path / f"a.{suffix}", "{}")
    records, dropped = read(tmp_path)
    assert len(records["reports-a"].images) == 1
    assert not dropped


def test_a_broken_link_is_one_records_fault(tmp_path):
    write(tmp_path / "a.txt", "One.")
    save(tmp_path / "a.png", 1)
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    save(tmp_path / "b.png", 2)
    records, dropped = read(tmp_path)
    assert list(records) == ["reports-a"]
    assert (dropped["b.txt"].reason, dropped["b.txt"].detail) == ("text cannot be read", "No such file or directory")

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

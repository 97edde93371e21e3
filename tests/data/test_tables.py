import json

import pytest

from medfinetune.data.tables import encoding_of, read_table
from medfinetune.errors import InputError

TEXT = 'Heart "normal".\n未见骨折。'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_marks_tell_the_encoding(tmp_path, encoding, suffix):
    path = tmp_path / f"a.{suffix}"
    quoted = '"' + TEXT.replace('"', '""') + '"'
    separator = "\t" if suffix == "tsv" else ","
    content = f"image{separator}text\n1.png{separator}{quoted}\n"
    if suffix == "jsonl":
        content = json.dumps({"image": "1.png", "text": TEXT}, ensure_ascii=False) + "\n"
    path.write_bytes(content.encode(encoding))
    ((where, row),) = read_table(path)
    assert row == {"image": "1.png", "text": TEXT}
    assert where == ("line 1" if suffix == "jsonl" else "row 2")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_another_encoding_is_named_or_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    content = "text\n未见骨折\n" if suffix == "csv" else '{"text": "未见骨折"}\n'
    path.write_bytes(content.encode("gb18030"))
    assert [row["text"] for _, row in read_table(path, "gb18030")] == ["未见骨折"]
    with pytest.raises(InputError, match=r"is not in UTF-8; `reports_encoding` names another encoding, e\.g\. gb18030"):
        list(read_table(path))


def test_encoding_of_an_empty_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    assert encoding_of(tmp_path / "a.txt") == "utf-8"


def test_another_separator_is_named(tmp_path):
    """Spreadsheets of half of Europe write semicolons; a comma in a text then makes a row too long."""
    (tmp_path / "a.csv").write_text("image;text\n1.png;No fracture, no effusion.\n")
    with pytest.raises(InputError, match=r"header has one cell, with ';' in it.*`reports_separator: ;`"):
        list(read_table(tmp_path / "a.csv"))
    assert [row["image"] for _, row in read_table(tmp_path / "a.csv", separator=";")] == ["1.png"]

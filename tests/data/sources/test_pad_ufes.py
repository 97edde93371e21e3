import pytest

from medfinetune.data.schema import MISSING_IMAGE, Dropped
from medfinetune.data.sources import pad_ufes
from medfinetune.errors import InputError
from tests.data.raw_folders import pad_row, write_pad, write_table


@pytest.mark.parametrize("doubled", [True, False])
def test_reads_table_and_folders(tmp_path, doubled):
    rows = [pad_row(1), pad_row(2, patient_id="PAT_1"), pad_row(3)]
    write_pad(tmp_path / "deep", rows, doubled, missing=("PAT_3_3_1.png",))
    first, second, lost = pad_ufes.read(tmp_path, ["en"])
    assert (first.id, first.label, first.patient_id) == ("pad_ufes-PAT_1_1_1-en", "BCC", "PAT_1")
    assert first.patient_id == second.patient_id == "PAT_1"
    assert first.metadata["sex"] == "female"
    assert lost == Dropped("pad_ufes", "metadata.csv row 4", MISSING_IMAGE, "PAT_3_3_1.png")


def test_caption_says_what_the_table_says():
    row = pad_row(1, hurt="False", elevation="True")
    assert pad_ufes.caption(row, "en") == (
        "Clinical photograph of a skin lesion on the arm of a 55-year-old woman, 8 x 5 mm. "
        "Diagnosis: basal cell carcinoma. It is raised, itches and does not hurt."
    )
    chinese = pad_ufes.caption(row, "zh")
    for words in ("55岁女性手臂", "8 x 5毫米", "基底细胞癌", "隆起、瘙痒、不痛"):
        assert words in chinese


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("nothing", ["UNK", "", "nan"])
def test_unknown_says_nothing(tmp_path, language, nothing):
    cells = dict.fromkeys(("age", "gender", "region", "itch", "grew", "hurt", "changed", "bleed", "elevation"), nothing)
    row = pad_row(1, **cells, diameter_1="0.0", diameter_2=nothing, diagnostic=nothing)
    (record,) = pad_ufes.read(write_pad(tmp_path, [row]), [language])
    assert record.text in ("Clinical photograph of a skin lesion.", "皮肤病变的临床照片。")
    assert record.label is None
    assert "sex" not in record.metadata


@pytest.mark.parametrize(("age", "noun"), [("8", "an 8-year-old patient"), ("11", "an 11-year-old patient")])
def test_a_child_is_no_woman(age, noun):
    assert noun in pad_ufes.caption({"age": age, "gender": "FEMALE"}, "en")


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(InputError, match="none: no such folder"):
        list(pad_ufes.read(tmp_path / "none", ["en"]))
    with pytest.raises(InputError, match=r"holds no metadata\.csv"):
        list(pad_ufes.read(tmp_path, ["en"]))
    row = pad_row(1)
    del row["region"]
    write_table(tmp_path / "metadata.csv", [row])
    with pytest.raises(InputError, match=r"metadata\.csv: column region is missing"):
        list(pad_ufes.read(tmp_path, ["en"]))
    write_table(tmp_path / "metadata.csv", [pad_row(1), pad_row(2, img_id="")])
    with pytest.raises(InputError, match="row 3: img_id is empty"):
        list(pad_ufes.read(tmp_path, ["en"]))
    (tmp_path / "metadata.csv").write_text(",".join(pad_row(1)) + "\n")
    with pytest.raises(InputError, match="holds no row"):
        list(pad_ufes.read(tmp_path, ["en"]))
    (tmp_path / "metadata.csv").write_text(",".join(pad_row(1)) + "\na,b\n")
    with pytest.raises(InputError, match="row 2 has not as many cells"):
        list(pad_ufes.read(tmp_path, ["en"]))

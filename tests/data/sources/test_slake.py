import json
from collections import Counter

import pytest

from medfinetune.data.schema import MISSING_IMAGE, Dropped, Record
from medfinetune.data.sources import slake
from medfinetune.errors import InputError
from tests.data.raw_folders import save, slake_row, write_slake


def read(folder, languages=("en", "zh"), split_by="image"):
    items = list(slake.read(folder, languages, split_by))
    return [x for x in items if isinstance(x, Record)], [x for x in items if isinstance(x, Dropped)]


@pytest.mark.parametrize("middle", ["validate", "validation"])
def test_split_is_by_image_across_languages(tmp_path, middle):
    train = [slake_row(1, 1), slake_row(2, 2), slake_row(3, 3)]
    # The other language asks about the same images in other files: the leak of the published split.
    validation = [slake_row(4, 2, "zh"), slake_row(5, 3, "zh")]
    test = [slake_row(6, 3, "zh"), slake_row(7, 4)]
    folder = write_slake(tmp_path / "Slake1.0", train, validation, test, middle)
    records, dropped = read(tmp_path)
    assert not dropped
    assert {(r.metadata["img_id"], r.split) for r in records} == {
        (1, "train"), (2, "validation"), (3, "test"), (4, "test")
    }  # fmt: skip
    english, _ = read(folder, ["en"])
    assert next(r for r in english if r.metadata["img_id"] == 3).split == "test"
    fresh, _ = read(folder, split_by="fresh")
    assert {r.split for r in fresh} == {None}
    assert [r.metadata["published_split"] for r in fresh] == ["train"] * 3 + ["validation"] * 2 + ["test"] * 2


def test_question_becomes_a_record(tmp_path):
    open_question = slake_row(2, 1, "zh", answer_type="OPEN")
    records, _ = read(write_slake(tmp_path, [slake_row(1, 1), open_question], [], []))
    first, second = records
    assert (first.id, first.text, first.label) == ("slake-en-1", "Is finding 1 there? Yes", "Yes")
    assert (second.id, second.answer, second.label) == ("slake-zh-2", "有", None)
    assert first.task == "question"
    assert first.metadata["modality"] == "CT"


def test_what_cannot_be_used_has_a_reason(tmp_path):
    rows = [
        slake_row(1, 1, answer=" "),
        slake_row(2, 1),
        slake_row(3, 1, question=slake_row(2, 1)["question"]),
        slake_row(4, 1, "zh"),
        slake_row(5, 2),
    ]
    folder = write_slake(tmp_path, rows, [], [])
    (folder / "imgs" / "xmlab2" / "source.jpg").unlink()
    records, dropped = read(folder, ["en"])
    assert [record.id for record in records] == ["slake-en-2"]
    assert Counter(item.reason for item in dropped) == {
        "question or answer is empty": 1,
        "duplicate": 1,
        "language is not among `languages`": 1,
        MISSING_IMAGE: 1,
    }


def test_images_directly_below_the_folder(tmp_path):
    folder = write_slake(tmp_path, [slake_row(1, 1)], [], [])
    (folder / "imgs" / "xmlab1" / "source.jpg").unlink()
    save(folder / "xmlab1" / "source.jpg", 1)
    records, _ = read(folder)
    assert records[0].images == [str(folder / "xmlab1" / "source.jpg")]


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(InputError, match="none: no such folder"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no train\.json"):
        read(tmp_path)
    write_slake(tmp_path, [slake_row(1, 1)], [], [])
    (tmp_path / "validate.json").unlink()
    with pytest.raises(InputError, match=r"validate\.json: no such file"):
        read(tmp_path)
    (tmp_path / "validate.json").write_text("[{")
    with pytest.raises(InputError, match=r"validate\.json: is no JSON"):
        read(tmp_path)
    row = slake_row(2, 1)
    del row["qid"]
    (tmp_path / "validate.json").write_text(json.dumps([row]))
    with pytest.raises(InputError, match=r"validate\.json: question 1 has no qid"):
        read(tmp_path)
    (tmp_path / "validate.json").write_text(json.dumps([slake_row(2, 1, answer=3)]))
    with pytest.raises(InputError, match="question 1: answer must be text, but is 3"):
        read(tmp_path)


def test_real_questions_without_images(real_data):
    _, dropped = read(real_data / "slake")
    reasons = Counter(item.reason for item in dropped)
    assert reasons == {MISSING_IMAGE: 14_013, "duplicate": 14, "question or answer is empty": 1}
    assert len({item.detail for item in dropped if item.reason == MISSING_IMAGE}) == 642


def test_real_split_by_image(real_data, tmp_path):
    for name in ("train", "validate", "test"):
        content = (real_data / "slake" / "Slake1.0" / f"{name}.json").read_bytes()
        (tmp_path / f"{name}.json").write_bytes(content)
        for row in json.loads(content):
            path = tmp_path / "imgs" / row["img_name"]
            if not path.exists():
                path.parent.mkdir(parents=True)
                path.write_bytes(b"never opened by a source")
    records, dropped = read(tmp_path)
    assert (len(records), len(dropped)) == (14_013, 15)
    images = {(record.metadata["img_id"], record.split) for record in records}
    assert Counter(split for _, split in images) == {"test": 180, "validation": 148, "train": 314}

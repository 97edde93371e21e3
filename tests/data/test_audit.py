import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfinetune.data.audit import audit, published_leaks
from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.data.schema import FEATURES
from medfinetune.errors import InputError
from tests.data.raw_folders import slake_row, write_slake
from tests.real_data import REPO


def write(folder, *rows: dict):
    blank = dict.fromkeys(FEATURES) | {"source": "reports", "split": "train"}
    filled = [
        blank | {"id": f"r{i}", "group_id": f"g{i}", "pixel_sha256": [f"{i}" * 64], "metadata": "{}"} | row
        for i, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(filled, schema=FEATURES.arrow_schema), folder / "all_med_pairs.parquet")
    return folder


def test_a_clean_folder_is_counted(tmp_path):
    rows = [{"patient_id": "1"}, {"patient_id": "2", "split": "test"}, {"patient_id": "1", "split": "train"}]
    assert audit(write(tmp_path, *rows)) == {"rows": 3, "patients": 2, "images": 3, "groups": 3}
    # Another source's patient 1 is another person.
    write(tmp_path, {"patient_id": "1"}, {"patient_id": "1", "source": "knee", "split": "test"})
    assert audit(tmp_path)["patients"] == 2


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"patient_id": "PAT_8"}, r"patient PAT_8 \(reports\) stands in test \(row r1\) and in train \(row r0\)"),
        ({"pixel_sha256": ["ab" * 32]}, r"image abab.* stands in test \(row r1\) and in train \(row r0\)"),
        ({"group_id": "group-1"}, r"group group-1 stands in test \(row r1\) and in train \(row r0\)"),
        ({"pixel_sha256": ["ab" * 32], "question": "Left?"}, "image abab.*such leaks in all"),
    ],
)
def test_a_leak_names_its_rows(tmp_path, shared, message):
    write(tmp_path, shared, shared | {"split": "test"}, {})
    with pytest.raises(InputError, match=rf"all_med_pairs\.parquet: {message}.*make the split anew"):
        audit(tmp_path)


def test_one_image_of_several_is_enough(tmp_path):
    write(
        tmp_path, {"pixel_sha256": ["a" * 64, "b" * 64]}, {"pixel_sha256": ["c" * 64, "b" * 64], "split": "validation"}
    )
    with pytest.raises(InputError, match="image bbb"):
        audit(tmp_path)


@pytest.mark.parametrize("split", [None, "holdout", ""])
def test_a_row_needs_a_split(tmp_path, split):
    write(tmp_path, {}, {"split": split})
    with pytest.raises(InputError, match=f"row r1: split {split!r} is none of train, validation, test"):
        audit(tmp_path)


@pytest.mark.parametrize(
    ("chats", "message"),
    [
        (["r0 train", "r1 test"], None),
        (["r1 test", "r0 train"], None),
        (["r0 train", "r1 train"], "line 2: row r1 stands in train, but all_med_pairs.parquet says test"),
        (["r0 train"], "row r1 of all_med_pairs.parquet is missing"),
        (["r0 train", "r1 test", "r2 test"], "line 3: row r2 is not in all_med_pairs.parquet"),
        (["r0 train", "r1 test", "r1 test"], "line 3: row r1 is not in .* or stands here twice"),
    ],
)
def test_chats_must_be_those_of_the_rows(tmp_path, chats, message):
    write(tmp_path, {}, {"split": "test"})
    lines = [json.dumps(dict(zip(("id", "split"), chat.split(), strict=True))) for chat in chats]
    (tmp_path / "chat_instructions.jsonl").write_text("\n".join(lines) + "\n")
    if message is None:
        assert audit(tmp_path)["rows"] == 2
    else:
        with pytest.raises(InputError, match=message):
            audit(tmp_path)


def test_an_id_twice_and_torn_chats_are_named(tmp_path):
    write(tmp_path, {}, {"split": "test"})
    (tmp_path / "chat_instructions.jsonl").write_text('{"id": "r0"')
    with pytest.raises(InputError, match=r"chat_instructions\.jsonl: line 1 is no JSON"):
        audit(tmp_path)
    write(tmp_path, {"id": "a"}, {"id": "a"})
    with pytest.raises(InputError, match="the id a stands more than once"):
        audit(tmp_path)


def test_the_command_counts_or_fails(tmp_path):
    def run(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "medfinetune.data.audit", *map(str, arguments)]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)

    write(tmp_path, {"patient_id": "1"}, {"patient_id": "2", "split": "test"})
    good = run(tmp_path)
    assert good.returncode == 0, good.stderr
    assert good.stdout.split()[:4] == ["rows", "2", "patients", "2"]
    write(tmp_path, {"patient_id": "1"}, {"patient_id": "1", "split": "test"})
    leaky = run(tmp_path)
    assert (leaky.returncode, len(leaky.stderr.splitlines())) == (2, 1)
    assert "patient 1 (reports) stands in test" in leaky.stderr
    assert run().returncode == 2


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(InputError, match=r"all_med_pairs\.parquet: no such file"):
        audit(tmp_path)
    (tmp_path / "all_med_pairs.parquet").write_text("x")
    with pytest.raises(InputError, match="is no parquet"):
        audit(tmp_path)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "all_med_pairs.parquet")
    with pytest.raises(InputError, match="column source is missing"):
        audit(tmp_path)


def test_the_published_split_of_slake_leaks_and_ours_does_not(tmp_path):
    train = [slake_row(1, 1), slake_row(2, 2, "zh"), slake_row(3, 5)]
    test = [slake_row(4, 1, "zh"), slake_row(5, 2), slake_row(6, 3), slake_row(7, 2, "zh")]
    write_slake(tmp_path / "slake", train, [slake_row(8, 4)], test)
    config = PrepareConfig(output_dir=str(tmp_path / "out"), slake_dir=str(tmp_path / "slake"), num_workers=1)
    report = prepare(config)
    assert report["audit"]["published"] == {"slake": {"test_rows": 4, "also_shown_in_train": 3}}
    assert audit(tmp_path / "out")["rows"] == 8
    path = tmp_path / "out" / "all_med_pairs.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["split"] = json.loads(row["metadata"])["published_split"]
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), path)
    with pytest.raises(InputError, match="stands in"):
        audit(tmp_path / "out")


def test_real_slake_leaks_as_published(real_data, tmp_path):
    """By the question files alone: pictures of our own would only slow this down."""
    rows = []
    for name, split in (("train", "train"), ("validate", "validation"), ("test", "test")):
        questions = json.loads((real_data / "slake" / "Slake1.0" / f"{name}.json").read_text(encoding="utf-8"))
        rows += [
            {"pixel_sha256": [str(q["img_id"])], "source": "slake", "metadata": json.dumps({"published_split": split})}
            for q in questions
        ]
    leaks = published_leaks(write(tmp_path, *rows) / "all_med_pairs.parquet")
    assert leaks == {"slake": {"test_rows": 2094, "also_shown_in_train": 1517}}


def test_a_test_row_of_several_images_leaks_once_and_by_any_of_them(tmp_path):
    published = [("train", ["a", "b"]), ("test", ["c", "b"]), ("test", ["a", "b"]), ("test", ["d", "e"])]
    rows = [
        {"pixel_sha256": images, "source": "s", "metadata": json.dumps({"published_split": split})}
        for split, images in published
    ]
    leaks = published_leaks(write(tmp_path, *rows) / "all_med_pairs.parquet")
    assert leaks == {"s": {"test_rows": 3, "also_shown_in_train": 2}}

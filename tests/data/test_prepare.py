import errno
import fcntl
import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfinetune.data import image_store
from medfinetune.data import prepare as prepare_module
from medfinetune.data.images import ImageOptions, hash_patient, store_image
from medfinetune.data.journal import JOURNAL
from medfinetune.data.lock import only_writer
from medfinetune.data.prepare import PrepareConfig, prepare
from medfinetune.data.schema import FEATURES
from medfinetune.errors import InputError
from medfinetune.parser import parse
from tests.data.raw_folders import (
    pad_row,
    picture,
    save,
    slake_row,
    write_dicom,
    write_knee,
    write_pad,
    write_slake,
    write_table,
)
from tests.real_data import REPO

HOLD_LOCK = """
import sys, time
from pathlib import Path
from medfinetune.data.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def rows_of(output_dir) -> list[dict]:
    return pq.read_table(output_dir / "all_med_pairs.parquet").to_pylist()


def check_sums(report: dict) -> None:
    assert report["records_in"] == report["pairs"] + sum(report["dropped"].values())
    by_source = [count for reasons in report["dropped_by_source"].values() for count in reasons.values()]
    assert sum(by_source) == sum(report["dropped"].values())


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """All four sources, with a trap in each."""
    folder = tmp_path_factory.mktemp("raw")
    # 1 is disputed; 2 and 3 show the same pixels under other names.
    write_knee(folder / "knee", {1: (0, 1), 2: (2, 2), 4: (3, 3)})
    for expert in ("MedicalExpert-I", "MedicalExpert-II"):
        name = f"Digital Knee X-ray Images/Knee X-ray Images/{expert}/2Mild/MildG2 (3).bmp"
        save(folder / "knee" / name, 2)
    rows = [pad_row(1), pad_row(2, patient_id="PAT_1"), pad_row(3), pad_row(4)]
    write_pad(folder / "pad", rows, missing=("PAT_4_4_1.png",))
    broken = folder / "pad/images/imgs_part_1/imgs_part_1/PAT_3_3_1.png"
    broken.write_bytes(broken.read_bytes()[:150])
    write_slake(folder / "slake", [slake_row(1, 1), slake_row(2, 1, answer="")], [slake_row(3, 2)], [slake_row(4, 1)])
    for i in range(3):
        save(folder / "scans" / f"{i}.png", 100 + i)
    save(folder / "scans" / "copy of 0.bmp", 100)
    reports = [
        {"image": "scans/0.png", "text": "No fracture.", "split": "train", "patient_id": "A"},
        {"image": "scans/copy of 0.bmp", "text": "No fracture.", "split": "test", "patient_id": "B"},
        {"image": "scans/1.png", "text": "Fracture, left.", "split": "train", "patient_id": "B"},
        {"image": "scans/2.png", "text": "Effusion.", "split": "train", "patient_id": "C"},
    ]
    write_table(folder / "reports.csv", reports)
    return folder


def config_for(raw, output_dir, **values) -> PrepareConfig:
    sources = {"knee_dir": "knee", "pad_ufes_dir": "pad", "slake_dir": "slake", "reports_file": "reports.csv"}
    given = {key: str(raw / name) for key, name in sources.items()} | {"num_workers": 1, "languages": ["en"]}
    return PrepareConfig(output_dir=str(output_dir), **(given | values))


def test_all_sources_at_once(raw, tmp_path):
    report = prepare(config_for(raw, tmp_path))
    check_sums(report)
    assert report == json.loads((tmp_path / "data_report.json").read_text())
    assert report["records_in"] == 8 + 4 + 4 + 4
    assert report["dropped"] == {
        "duplicate": 6,
        "graders dispute the grade": 1,
        "image file is missing": 1,
        "question or answer is empty": 1,
        "unreadable image: truncated image": 1,
    }
    assert report["by_source"] == {"knee": 2, "pad_ufes": 2, "slake": 3, "reports": 3}
    assert report["missing_image_files"] == {"pad_ufes": 1}
    assert report["by_label"]["knee"] == {"2": 1, "3": 1}
    (example,) = report["dropped_examples"]["unreadable image: truncated image"]
    assert example["where"] == "metadata.csv row 4"
    assert "PAT_3_3_1.png" in example["detail"]


def test_rows_have_the_schema_and_their_images(raw, tmp_path):
    prepare(config_for(raw, tmp_path, languages=["en", "zh"]))
    assert pq.read_schema(tmp_path / "all_med_pairs.parquet").equals(FEATURES.arrow_schema)
    rows = rows_of(tmp_path)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert len(row["images"]) == len(row["pixel_sha256"])
        for file, sha256 in zip(row["images"], row["pixel_sha256"], strict=True):
            assert store_image(tmp_path / file, tmp_path / "again", ImageOptions()).sha256 == sha256
        assert isinstance(json.loads(row["metadata"]), dict)
    assert Counter((row["source"], row["language"]) for row in rows)["knee", "zh"] == 2


def test_no_patient_image_or_group_on_two_sides(raw, tmp_path):
    prepare(config_for(raw, tmp_path, validation_fraction=0.4, languages=["en", "zh"]))
    sides = defaultdict(set)
    for row in rows_of(tmp_path):
        keys = [row["group_id"], f"{row['source']} {row['patient_id'] or row['id']}", *row["pixel_sha256"]]
        for key in keys:
            sides[key].add(row["split"])
    assert all(len(splits) == 1 for splits in sides.values())


def test_a_dropped_duplicate_still_ties_its_patient_and_split(raw, tmp_path):
    report = prepare(config_for(raw, tmp_path))
    rows = [row for row in rows_of(tmp_path) if row["source"] == "reports"]
    # The same scan was filed under A in train and under B in test: both patients are test now.
    assert [(row["patient_id"], row["split"]) for row in rows] == [("A", "test"), ("B", "test"), ("C", "train")]
    assert report["moved_to_the_split_of_their_group"] == 1


def test_the_same_input_gives_the_same_bytes(raw, tmp_path):
    first = config_for(raw, tmp_path / "a", languages=["en", "zh"], validation_fraction=0.3)
    second = config_for(raw, tmp_path / "b", languages=["en", "zh"], validation_fraction=0.3, num_workers=2)
    prepare(first)
    prepare(second)
    for name in ("all_med_pairs.parquet", "chat_instructions.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_ids_are_unique_even_where_the_source_repeats_them(tmp_path):
    rows = [slake_row(1, 1), slake_row(1, 2), slake_row(1, 3, question="Another one?")]
    write_slake(tmp_path / "slake", rows, [], [])
    prepare(PrepareConfig(output_dir=str(tmp_path / "out"), slake_dir=str(tmp_path / "slake"), num_workers=1))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["slake-en-1", "slake-en-1-2", "slake-en-1-3"]


def test_ids_are_unique_across_table_and_folder(tmp_path):
    for i, name in enumerate(("2.txt", "2-2.txt", "2-3.txt")):
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "scans" / name).write_text(f"Report {i}.")
        save(tmp_path / "scans" / name.replace("txt", "png"), i)
    write_table(tmp_path / "t.csv", [{"image": "scans/2.png", "text": "Another."}])
    config = PrepareConfig(
        output_dir=str(tmp_path / "out"),
        reports_dir=str(tmp_path / "scans"),
        reports_file=str(tmp_path / "t.csv"),
        num_workers=1,
    )
    prepare(config)
    assert sorted(row["id"] for row in rows_of(tmp_path / "out")) == [
        "reports-2",
        "reports-2-2",
        "reports-2-3",
        "reports-2-4",
    ]


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    entered = False
    with only_writer(tmp_path):
        entered = True
    assert entered


@pytest.mark.parametrize("remove", [False, True])
def test_images_of_removed_patients_are_counted_and_removed_on_request(tmp_path, remove):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    rows = [{"image": f"{i}.png", "text": f"Report {i}."} for i in range(3)]
    values = {"output_dir": str(tmp_path / "out"), "reports_file": str(tmp_path / "a.csv"), "num_workers": 1}
    write_table(tmp_path / "a.csv", rows)
    assert prepare(PrepareConfig(**values))["unused_images"]["num_files"] == 0
    foreign = save(tmp_path / "out" / "images" / "aa" / "mine.png", 9)
    write_table(tmp_path / "a.csv", rows[1:])
    report = prepare(PrepareConfig(**values, remove_unused=remove))
    assert report["unused_images"] == {"num_files": 1, "removed": remove}
    assert any("1 image files of earlier runs are no longer used" in text for text in report["warnings"]) != remove
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == (3 if remove else 4)
    assert foreign.exists()
    assert (str(tmp_path / "0.png") in (tmp_path / "out" / JOURNAL).read_text()) != remove
    assert all((tmp_path / "out" / row["images"][0]).is_file() for row in rows_of(tmp_path / "out"))
    # What is still used was not forgotten.
    assert (tmp_path / "out" / JOURNAL).read_text().count("sha256") == (2 if remove else 3)


def test_an_interrupt_is_one_line(tmp_path):
    rows = []
    for i in range(60):
        save(tmp_path / f"{i}.png", picture(i, (700, 600)))
        rows.append({"image": f"{i}.png", "text": f"Report {i}."})
    write_table(tmp_path / "reports.csv", rows)
    command = [sys.executable, "recipes/prepare.py", "--reports_file", str(tmp_path / "reports.csv")]
    command += ["--output_dir", str(tmp_path / "out"), "--num_workers", "2"]
    # A shell gives what it starts in the background no Ctrl-C.
    hears_it = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True, preexec_fn=hears_it)
    journal = tmp_path / "out" / JOURNAL
    while process.poll() is None and (not journal.exists() or journal.read_text().count("}") < 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "interrupted; what was saved so far is kept" in stderr
    assert "Traceback" not in stderr
    assert "ignored" not in stderr


def test_max_pairs_keeps_a_sample_by_seed(raw, tmp_path):
    write_table(raw / "many.csv", [{"image": "scans/0.png", "text": f"Report {i}."} for i in range(50)])

    def sample(name, **values):
        config = PrepareConfig(output_dir=str(tmp_path / name), reports_file=str(raw / "many.csv"), **values)
        report = prepare(config)
        check_sums(report)
        return report, {row["id"] for row in rows_of(tmp_path / name)}

    report, some = sample("a", max_pairs={"reports": 20})
    assert (report["pairs"], report["dropped"]) == (20, {"over max_pairs": 30})
    assert sample("b", max_pairs={"reports": 20})[1] == some
    assert sample("c", max_pairs={"reports": 20}, seed=1)[1] != some
    assert sample("d", max_pairs={"reports": 25})[1] > some
    assert sample("e", max_pairs={"reports": 50})[0]["dropped"] == {}


def test_a_source_without_any_image_is_said_loudly(raw, tmp_path):
    write_slake(tmp_path / "slake", [slake_row(1, 1), slake_row(2, 2)], [], [])
    for path in (tmp_path / "slake" / "imgs").rglob("*.jpg"):
        path.unlink()
    report = prepare(config_for(raw, tmp_path / "out", slake_dir=str(tmp_path / "slake")))
    assert report["warnings"][1:3] == [
        "slake: NOTHING IS KEPT of its 2 records",
        "slake: 2 image files are missing, the first is imgs/xmlab1/source.jpg",
    ]


def test_nothing_left_names_an_example_and_lists_all(raw, tmp_path):
    (tmp_path / "scans").mkdir()
    for i in range(2):
        (tmp_path / "scans" / f"{i}.txt").write_bytes("未见骨折".encode("gb18030"))
    out = tmp_path / "out"
    config = PrepareConfig(output_dir=str(out), reports_dir=str(tmp_path / "scans"))
    message = (
        r"no pair is left of 2 records \(text is in another encoding: 2\); e\.g\. 0\.txt: .*`reports_encoding` .*"
        r"listed in .*dropped_of_failed_run\.jsonl"
    )
    with pytest.raises(InputError, match=message):
        prepare(config)
    listed = out / "dropped_of_failed_run.jsonl"
    assert len(listed.read_text().splitlines()) == 2
    assert not (out / "dropped.jsonl").exists()
    prepare(config_for(raw, out))
    assert not listed.exists()
    before = (out / "dropped.jsonl").read_bytes()
    with pytest.raises(InputError, match="no pair is left"):
        prepare(config)
    assert (out / "dropped.jsonl").read_bytes() == before


def test_a_failed_run_leaves_the_earlier_output(raw, tmp_path, monkeypatch):
    prepare(config_for(raw, tmp_path))
    names = ("all_med_pairs.parquet", "chat_instructions.jsonl", "data_report.json")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    with pytest.raises(InputError):
        prepare(config_for(raw, tmp_path, knee_dir=str(raw / "none")))

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(prepare_module, "write_chats", fail)
    with pytest.raises(InputError, match="cannot be written"):
        prepare(config_for(raw, tmp_path, seed=3, validation_fraction=0.3))
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_a_second_run_opens_no_image(raw, tmp_path, monkeypatch):
    config = config_for(raw, tmp_path)
    first = prepare(config)

    def only_the_failed_one(path, *rest):
        # Any other exception would be taken for the file's own fault.
        if "PAT_3" not in path:
            raise KeyboardInterrupt(path)
        return store_image(path, *rest)

    monkeypatch.setattr(image_store, "store_image", only_the_failed_one)
    second = prepare(config)
    assert first | {"seconds": 0} == second | {"seconds": 0}


def test_killed_runs_go_on_to_the_same_parquet(tmp_path):
    rows = []
    for i in range(60):
        save(tmp_path / "scans" / f"{i}.png", picture(i, (500, 400)))
        rows.append({"image": f"scans/{i}.png", "text": f"Report {i}."})
    write_table(tmp_path / "reports.csv", rows)
    command = [sys.executable, "recipes/prepare.py", "--reports_file", str(tmp_path / "reports.csv")]
    command += ["--num_workers", "2", "--output_dir"]

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, str(tmp_path / name)], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert start("undisturbed").wait() == 0
    journal = tmp_path / "killed" / JOURNAL
    for num_done in (5, 30):
        process = start("killed")
        while process.poll() is None and (not journal.exists() or journal.read_text().count("}") < num_done):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    expected = (tmp_path / "undisturbed" / "all_med_pairs.parquet").read_bytes()
    assert (tmp_path / "killed" / "all_med_pairs.parquet").read_bytes() == expected
    done = [json.loads(line)["key"] for line in journal.read_text().splitlines() if line.endswith("}")]
    assert len(done) == len(set(done)) == 60, "a done image was decoded again"


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(raw, tmp_path):
    for i in range(150):
        save(tmp_path / "scans" / f"{i}.png", picture(i, (400, 300)))
        (tmp_path / "scans" / f"{i}.txt").write_text(f"Report {i}.")
    arguments = {"reports_dir": tmp_path / "scans", "knee_dir": raw / "knee", "pad_ufes_dir": raw / "pad"}
    arguments |= {"slake_dir": raw / "slake", "reports_file": raw / "reports.csv", "num_workers": 2}
    command = [sys.executable, "recipes/prepare.py"]
    command += [word for key, value in arguments.items() for word in (f"--{key}", str(value))]

    def start(name: str) -> subprocess.Popen:
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*command, "--output_dir", str(tmp_path / name)], cwd=REPO, **silent)

    started = time.perf_counter()
    assert start("undisturbed").wait() == 0
    seconds = time.perf_counter() - started
    rng = random.Random(0)
    num_killed = 0
    while num_killed < 10:
        process = start("killed")
        # From the first import to the last file.
        time.sleep(rng.uniform(0.1, 1.0) * seconds)
        num_killed += process.poll() is None
        process.kill()
        process.wait()
    assert start("killed").wait() == 0
    for name in ("all_med_pairs.parquet", "chat_instructions.jsonl", "dropped.jsonl"):
        expected = (tmp_path / "undisturbed" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == expected, name
    assert not list((tmp_path / "killed").rglob("*.tmp"))
    assert not list((tmp_path / "killed").glob("unfinished_*"))


def test_the_original_mix_splits_into_2201_and_116(tmp_path):
    """2,317 pairs, one more than enough of each source but the own reports, through the real configuration."""
    write_knee(tmp_path / "knee", {i: (i % 5, i % 5) for i in range(751)})
    write_pad(tmp_path / "pad", [pad_row(i) for i in range(201)])
    write_slake(tmp_path / "slake", [slake_row(i, i) for i in range(301)], [], [])
    reports = []
    for i in range(117):
        save(tmp_path / "scans" / f"{i}.png", 3_000_000 + i)
        reports.append({"image": f"scans/{i}.png", "text": f"Report {i}."})
    write_table(tmp_path / "reports.csv", reports)
    argv = ["--config", str(REPO / "recipes/prepare/original_mix.yaml"), "--output_dir", str(tmp_path / "out")]
    for key, name in (("knee_dir", "knee"), ("pad_ufes_dir", "pad"), ("slake_dir", "slake")):
        argv += [f"--{key}", str(tmp_path / name)]
    config = parse(PrepareConfig, "", argv=[*argv, "--reports_file", str(tmp_path / "reports.csv")])
    report = prepare(config)
    check_sums(report)
    assert report["by_source"] == {"knee": 1500, "pad_ufes": 400, "slake": 300, "reports": 117}
    assert report["pairs"] == 2317
    assert report["by_split"] == {"train": 2201, "validation": 116}
    splits = {row["id"]: row["split"] for row in rows_of(tmp_path / "out")}
    prepare(config)
    assert {row["id"]: row["split"] for row in rows_of(tmp_path / "out")} == splits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give at least one of knee_dir"),
        ({"languages": ["fr"]}, "languages"),
        ({"languages": []}, "languages"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"validation_fraction": 0.6, "test_fraction": 0.5}, "nothing to train on"),
        ({"max_pairs": {"kne": 1}}, "max_pairs: unknown source kne"),
        ({"max_pairs": {"knee": -1}}, "max_pairs: knee: -1"),
        ({"max_side_px": 0}, "max_side_px"),
        ({"num_workers": 0}, "num_workers"),
    ],
)
def test_wrong_keys_are_named(values, message):
    with pytest.raises(InputError, match=message):
        PrepareConfig(output_dir="out", **({"knee_dir": "x"} if values else {}) | values)


def test_output_that_cannot_be_written(raw, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file: cannot be written"):
        prepare(config_for(raw, tmp_path / "file"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_stops_the_run_and_the_next_goes_on(tmp_path, num_workers):
    """A quota, as the system sets one for a process: no file may grow beyond it."""
    rows = []
    for i, size in enumerate([(20, 20), (20, 20), (300, 200), (300, 200)]):
        save(tmp_path / f"{i}.png", picture(i, size))
        rows.append({"image": f"{i}.png", "text": f"Report {i}."})
    write_table(tmp_path / "reports.csv", rows)
    command = [sys.executable, "recipes/prepare.py", "--reports_file", str(tmp_path / "reports.csv")]
    command += ["--output_dir", str(tmp_path / "out"), "--num_workers", str(num_workers)]

    def start(limit: int) -> subprocess.CompletedProcess:
        limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))}
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, **limits)

    failed = start(100_000)
    assert failed.returncode == 2, failed.stdout
    assert f"error: {tmp_path}/out: cannot be written (output_dir): " in failed.stderr
    assert "Traceback" not in failed.stderr
    # What another worker had in hand at that moment is not noted.
    noted = (tmp_path / "out" / JOURNAL).read_text().count("sha256")
    assert 3 - num_workers <= noted <= 2
    done = start(resource.RLIM_INFINITY)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 4


def test_a_full_folder_of_temporary_files_is_one_line(raw, tmp_path, monkeypatch):
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(prepare_module, "settle", fail)
    with pytest.raises(InputError, match="temporary files cannot be written"):
        prepare(config_for(raw, tmp_path / "out"))
    error.sqlite_errorname = "SQLITE_ERROR"
    with pytest.raises(sqlite3.OperationalError):
        prepare(config_for(raw, tmp_path / "out"))


def test_a_source_that_cannot_be_read_is_not_the_output(raw, tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "scans/secret")
        yield

    monkeypatch.setattr(prepare_module.knee, "read", fail)
    with pytest.raises(InputError, match=r"^scans/secret: cannot be read: Permission denied$"):
        prepare(config_for(raw, tmp_path / "out"))


def test_one_run_at_a_time_in_a_folder(raw, tmp_path):
    config = config_for(raw, tmp_path / "out")
    (tmp_path / "out").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "out")], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"out: another run is writing here"):
            prepare(config)
        chats = [sys.executable, "recipes/chats.py", "--data_dir", str(tmp_path / "out")]
        refused = subprocess.run(chats, cwd=REPO, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "another run is writing here" in refused.stderr
    finally:
        holder.kill()
        holder.wait()
    prepare(config)


def test_a_worker_does_not_hold_the_lock_of_its_killed_parent(tmp_path):
    context = multiprocessing.get_context("fork")
    started, over = context.Event(), context.Event()
    with only_writer(tmp_path):
        worker = context.Process(target=lambda: (started.set(), over.wait(60)))
        worker.start()
        assert started.wait(60)
    try:
        with only_writer(tmp_path):
            pass
    finally:
        worker.kill()


def test_names_and_texts_that_are_not_unicode_stop_nothing(raw, tmp_path):
    for folder, name in (("scans", b"\xb2\xa1"), ("scans", b"good")):
        path = tmp_path / folder / os.fsdecode(name)
        save(path.with_suffix(".png"), len(name))
        path.with_suffix(".txt").write_text("No fracture.")
    table = [{"image": str(raw / "scans" / "0.png"), "text": text} for text in ("\ud800", "Effusion.")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, table)))
    sources = {"reports_dir": str(tmp_path / "scans"), "reports_file": str(tmp_path / "a.jsonl")}
    report = prepare(PrepareConfig(output_dir=str(tmp_path / "out"), num_workers=1, **sources))
    assert report["pairs"] == 2
    assert report["dropped"] == {"file name or text is not Unicode": 2}
    examples = report["dropped_examples"]["file name or text is not Unicode"]
    assert {item["where"] for item in examples} == {"\\udcb2\\udca1.txt", "line 1"}


@pytest.mark.slow
def test_real_folders(real_data, tmp_path):
    config = PrepareConfig(
        output_dir=str(tmp_path),
        knee_dir=str(real_data / "knee"),
        pad_ufes_dir=str(real_data / "pad_ufes_20"),
        slake_dir=str(real_data / "slake"),
        languages=["en"],
        num_workers=os.cpu_count(),
    )
    report = prepare(config)
    check_sums(report)
    assert report["by_source"] == {"knee": 1566, "pad_ufes": 257}
    assert report["dropped_by_source"]["knee"] == {"duplicate": 1721, "graders dispute the grade": 13}
    assert report["dropped_by_source"]["pad_ufes"] == {"image file is missing": 2041}
    assert report["by_label"]["knee"] == {"0": 469, "1": 469, "2": 219, "4": 206, "3": 203}
    assert report["missing_image_files"] == {"pad_ufes": 2041, "slake": 642}
    assert any("slake: 642 image files are missing" in warning for warning in report["warnings"])
    assert report["images"] == 1823
    bilateral = [json.loads(row["metadata"]).get("bilateral") for row in rows_of(tmp_path)]
    assert 0 < sum(map(bool, bilateral)) < 372


def test_all_that_was_dropped_is_listed(raw, tmp_path):
    report = prepare(config_for(raw, tmp_path))
    listed = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(item["reason"] for item in listed) == report["dropped"]
    assert {"source", "where", "reason", "detail"} == set(listed[0])


def test_allowed_licences_only(raw, tmp_path):
    report = prepare(config_for(raw, tmp_path, allow_licenses=["CC-BY-4.0"]))
    check_sums(report)
    assert report["by_license"] == {"CC-BY-4.0": 4}
    assert report["dropped"]["license is not among `allow_licenses`"] == 3 + 4
    assert report["licenses_to_check"] == []


@pytest.fixture
def dicom_folder(tmp_path):
    for i, patient in enumerate(("4711", "4711", "4712", "4713")):
        values = picture(i).convert("L")
        write_dicom(tmp_path / "scans" / f"{i}.dcm", np.asarray(values).astype(np.uint16), PatientID=patient)
        (tmp_path / "scans" / f"{i}.txt").write_text(f"Report {i}.")
    (tmp_path / "key").write_text("a secret of 21 bytes!")
    return tmp_path


def test_dicom_patients_stay_together_by_a_keyed_hash(dicom_folder):
    values = {"output_dir": str(dicom_folder / "out"), "reports_dir": str(dicom_folder / "scans"), "num_workers": 1}
    with pytest.raises(InputError, match=r"4 DICOM records name their patient .* 0\.txt: give patient_key_file"):
        prepare(PrepareConfig(**values))
    prepare(PrepareConfig(**values, patient_key_file=str(dicom_folder / "key"), validation_fraction=0.5))
    rows = rows_of(dicom_folder / "out")
    patients = [row["patient_id"] for row in rows]
    assert patients[0] == patients[1] == hash_patient("4711", b"a secret of 21 bytes!")
    assert len(set(patients)) == 3
    assert rows[0]["group_id"] == rows[1]["group_id"]
    for path in (dicom_folder / "out").rglob("*"):
        for secret in (b"4711", b"a secret", b"Jane", b"Elsewhere"):
            assert path.is_dir() or secret not in path.read_bytes(), (path, secret)


def test_dicom_patients_may_be_ignored_with_a_warning(dicom_folder):
    config = PrepareConfig(
        output_dir=str(dicom_folder / "out"), reports_dir=str(dicom_folder / "scans"), dicom_patients="ignore"
    )
    report = prepare(config)
    assert {row["patient_id"] for row in rows_of(dicom_folder / "out")} == {None}
    assert report["warnings"] == [
        "validation_fraction: 0.05, but no pair is in validation: there are too few, or groups are too large",
        "dicom_patients: ignore: images of one patient may stand in two splits",
    ]


def test_without_a_key_headers_and_table_are_not_compared(dicom_folder):
    """By the headers 0 and 1 are one patient, by the table two."""
    rows = [{"image": f"scans/{i}.dcm", "text": f"Report {i}.", "patient_id": f"P{i}"} for i in range(4)]
    write_table(dicom_folder / "a.csv", rows)
    values = {"output_dir": str(dicom_folder / "out"), "reports_file": str(dicom_folder / "a.csv"), "num_workers": 1}
    report = prepare(PrepareConfig(**values))
    assert report["warnings"][-1].startswith("4 pairs have a patient_id in the table and a patient in the DICOM header")
    report = prepare(PrepareConfig(**values, patient_key_file=str(dicom_folder / "key")))
    assert not any("patient" in warning for warning in report["warnings"])
    assert rows_of(dicom_folder / "out")[0]["group_id"] == rows_of(dicom_folder / "out")[1]["group_id"]


def test_images_that_stood_in_the_table_are_not_left_behind(raw, tmp_path):
    content = (raw / "scans" / "0.png").read_bytes()
    pq.write_table(pa.Table.from_pylist([{"image": content, "text": "One."}]), tmp_path / "a.parquet")
    prepare(PrepareConfig(output_dir=str(tmp_path / "out"), reports_file=str(tmp_path / "a.parquet"), num_workers=1))
    assert len(rows_of(tmp_path / "out")) == 1
    assert not (tmp_path / "out" / "images" / "incoming").exists()


def test_chats_go_through_to_the_jsonl(raw, tmp_path):
    turns = [{"role": "user", "content": "Fracture?"}, {"role": "assistant", "content": "No."}]
    row = {"images": [str(raw / "scans" / "0.png")], "messages": turns}
    (tmp_path / "chats.jsonl").write_text(json.dumps(row))
    prepare(PrepareConfig(output_dir=str(tmp_path / "out"), reports_file=str(tmp_path / "chats.jsonl"), num_workers=1))
    (line,) = (tmp_path / "out" / "chat_instructions.jsonl").read_text().splitlines()
    assert json.loads(line)["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "Fracture?"}]
    assert json.loads(line)["messages"][1]["content"] == [{"type": "text", "text": "No."}]


def test_pairs_that_max_pairs_leaves_out_still_tie(tmp_path):
    """The first image is A's and B's, the second B's alone, and so on: one group, whichever of them are kept."""
    rows = []
    for i in range(40):
        save(tmp_path / f"{i}.png", i)
        rows += [{"image": f"{i}.png", "text": f"{i}", "patient_id": str(i + j)} for j in (0, 1)]
        rows[-1]["text"] += " again"
    write_table(tmp_path / "reports.csv", rows)
    values = {"reports_file": str(tmp_path / "reports.csv"), "max_pairs": {"reports": 10}, "num_workers": 1}
    prepare(PrepareConfig(output_dir=str(tmp_path / "out"), **values))
    assert len(rows_of(tmp_path / "out")) == 10
    assert len({row["group_id"] for row in rows_of(tmp_path / "out")}) == 1

"""From a data folder to an index, and the evidence of every chat."""

import json
import shutil
import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medfinetune.data.load import load_chats, load_pairs
from medfinetune.errors import InputError
from medfinetune.inference import build as module
from medfinetune.inference.build import build_index, read_evidence
from medfinetune.inference.index import read_info


@pytest.fixture(scope="module")
def pairs(phantom_dir):
    names = ["id", "text", "language", "source", "task", "patient_id", "pixel_sha256", "split"]
    rows = []
    for split in load_pairs(phantom_dir / "data").values():
        columns = split.select_columns(names)[:]
        rows += [dict(zip(names, values, strict=True)) for values in zip(*(columns[n] for n in names), strict=True)]
    return {row["id"]: row for row in rows}


def test_every_chat_that_is_trained_on_has_evidence(index_dir, phantom_dir, pairs):
    evidence = read_evidence(index_dir, phantom_dir / "data")
    chats = load_chats(phantom_dir / "data")
    assert set(evidence) == {identity for split in ("train", "validation") for identity in chats[split]["id"]}
    reports = [identity for identity in evidence if pairs[identity]["task"] == "report"]
    assert len(reports) > 40
    assert all(evidence[identity].neighbours for identity in reports)
    assert any(evidence[identity].labels for identity in reports)


def test_no_neighbour_is_of_the_same_patient_or_pixels(index_dir, pairs):
    """By a plain look at what the parquet says of both."""
    owners, of_pixels = defaultdict(set), defaultdict(set)
    for row in pairs.values():
        for key in row["pixel_sha256"]:
            owners[key] |= {(row["source"], row["patient_id"])} if row["patient_id"] else set()
            of_pixels[key].add(row["id"])
    num_checked = 0
    for identity, evidence in read_evidence(index_dir).items():
        row = pairs[identity]
        own = {(row["source"], row["patient_id"])} if row["patient_id"] else set()
        for near in evidence.neighbours:
            other = pairs[near.id]
            assert other["split"] == "train"
            assert other["task"] == "report"
            assert not set(row["pixel_sha256"]) & set(other["pixel_sha256"])
            assert not own & set().union(*(owners[key] for key in other["pixel_sha256"]))
            num_checked += 1
    assert num_checked > 100


def test_no_neighbour_is_of_the_same_study(index_config, tmp_path):
    """Where no patient is known: images of one study have one report, which would be told as evidence of itself."""
    data = shutil.copytree(index_config.data_dir, tmp_path / "data")
    rows = pd.read_parquet(data / "all_med_pairs.parquet")
    rows["patient_id"] = None
    images = rows["pixel_sha256"].map(lambda keys: keys[0])
    rows["group_id"] = "study-" + (images.factorize()[0] % 12).astype(str)
    rows.to_parquet(data / "all_med_pairs.parquet")
    group, split = (dict(zip(rows["id"], rows[name], strict=True)) for name in ("group_id", "split"))
    index_dir = build_index(replace(index_config, data_dir=str(data), output_dir=str(tmp_path / "index")))
    told = [(identity, near.id) for identity, found in read_evidence(index_dir).items() for near in found.neighbours]
    assert len([one for one, _ in told if split[one] == "train"]) > 100
    assert not [(one, near) for one, near in told if group[one] == group[near]]


def test_reports_are_told_in_the_language_of_the_chat(index_dir, pairs):
    told = [
        (pairs[i]["language"], pairs[n.id]["language"])
        for i, e in read_evidence(index_dir).items()
        for n in e.neighbours
    ]
    assert {language for language, _ in told} == {"en", "zh"}
    assert all(wanted == given for wanted, given in told)  # every generated report is in both


def test_what_is_unlike_is_measured_on_the_validation_split(index_dir, pairs):
    info, evidence = read_info(index_dir), read_evidence(index_dir)
    validation = [row for row in pairs.values() if row["split"] == "validation" and row["task"] == "report"]
    nearest = {row["pixel_sha256"][0]: evidence[row["id"]].neighbours[0].similarity for row in validation}
    assert info["measured_on"] == "validation"
    assert info["num_measured"] == len(nearest)
    assert info["unlike_below"] == pytest.approx(np.percentile(list(nearest.values()), 1), abs=2e-6)
    # At most one in twenty has a neighbour cut away.
    assert np.mean([len(evidence[row["id"]].neighbours) == 3 for row in validation]) >= 0.8
    assert info["max_similarity_drop"] > 0


def test_an_index_of_the_same_is_left(index_config, index_dir, monkeypatch):
    monkeypatch.setattr(module, "load_encoder", lambda *_: pytest.fail("nothing is to be embedded"))
    before = (index_dir / "index.json").stat().st_mtime_ns
    assert build_index(replace(index_config, batch_size=7)) == index_dir
    assert (index_dir / "index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_neighbours": 5}, "other keys"),
        ({"zero_shot_file": None}, "other keys"),
        ({"index_type": "ivf"}, "other keys"),
    ],
)
def test_other_settings_need_a_word(index_config, index_dir, changed, message):
    with pytest.raises(InputError, match=f"holds an index of {message}; name another folder, or .*--overwrite true"):
        build_index(replace(index_config, **changed))


def test_another_encoder_and_other_data_need_a_word(index_config, index_dir, tmp_path):
    encoder = shutil.copytree(index_config.encoder_dir, tmp_path / "encoder")
    settings = json.loads((encoder / "tokenizer_config.json").read_text())
    (encoder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 32}))
    with pytest.raises(InputError, match="holds an index of another encoder"):
        build_index(replace(index_config, encoder_dir=str(encoder)))
    data = tmp_path / "data"
    data.mkdir()
    (data / "all_med_pairs.parquet").write_bytes(b"other")
    with pytest.raises(InputError, match="holds an index of other data"):
        build_index(replace(index_config, data_dir=str(data)))
    with pytest.raises(InputError, match=r"is an index of other data .*than .*--overwrite true"):
        read_evidence(index_dir, data)


def test_what_was_left_half_written_is_made_anew_by_one_of_two(index_config, index_dir, tmp_path, monkeypatch):
    folder = shutil.copytree(index_dir, tmp_path / "index")
    (folder / "index.json").unlink()
    (folder / "unfinished").mkdir()
    with pytest.raises(InputError, match="holds no whole index"):
        read_evidence(folder)
    loads, really = [], module.load_encoder
    monkeypatch.setattr(module, "load_encoder", lambda *given: loads.append(given) or really(*given))
    config = replace(index_config, output_dir=str(folder))
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(build_index(config))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert found == [folder, folder]
    assert len(loads) == 1
    assert read_evidence(folder) == read_evidence(index_dir)


def test_tasks_that_nothing_is_of(index_config, tmp_path):
    with pytest.raises(InputError, match="the training split has no pair of the tasks poem"):
        build_index(replace(index_config, tasks=["poem"], output_dir=str(tmp_path / "new")))

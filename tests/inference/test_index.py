"""The nearest that may be told, by a plain loop and by FAISS."""

import json

import datasets
import numpy as np
import pytest

from medfinetune.errors import InputError
from medfinetune.inference import index as module
from medfinetune.inference.index import ImageIndex
from medfinetune.inference.rows import FEATURES


def vectors(num, size=16, seed=0):
    drawn = np.random.default_rng(seed).standard_normal((num, size)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def rows(num, images_a_patient=1):
    return datasets.Dataset.from_list(
        [
            {
                "pairs": [
                    {"id": f"r{i}", "text": f"Report {i}.", "language": "en", "source": "reports", "label": None}
                ],
                "patients": [{"source": "reports", "id": f"p{i // images_a_patient}"}],
                "pixels": [f"pixels{i}", f"second{i}"],
                "known": [],
                "image": f"{i}.png",
            }
            for i in range(num)
        ],
        features=FEATURES,
    )


def numbers(found):
    return [[match.number for match in matches] for matches in found]


def plain_nearest(embeds, queries, k, forbidden):
    """Each query against each image, one by one."""
    found = []
    for query, banned in zip(queries, forbidden, strict=True):
        cosines = [(-float(np.dot(query.astype(np.float64), e)), i) for i, e in enumerate(embeds) if i not in banned]
        found.append([i for _, i in sorted(cosines)[:k]])
    return found


@pytest.mark.parametrize("num_queries", [1, 33])
def test_the_nearest_of_others_are_those_of_a_plain_loop(num_queries):
    embeds, queries = vectors(90), vectors(num_queries, seed=1)
    index = ImageIndex.build(embeds, rows(90, images_a_patient=9))
    own = [(7 * i) % 90 for i in range(num_queries)]
    keys = [[f"second{i}"] for i in own]
    patients = [("reports", f"p{(i // 9 + 3) % 10}") for i in own]
    # The patient who is named, and the patient of the image that the pixels are known of: all their images are out.
    out = [
        set(range(9 * ((i // 9 + 3) % 10), 9 * ((i // 9 + 3) % 10) + 9)) | set(range(9 * (i // 9), 9 * (i // 9) + 9))
        for i in own
    ]
    found = index.nearest(queries, 5, keys, patients)
    assert numbers(found) == plain_nearest(embeds, queries, 5, out)
    assert all(
        m.similarity == pytest.approx(float(queries[i] @ embeds[m.number]), abs=2e-6)
        for i, ms in enumerate(found)
        for m in ms
    )


def test_search_goes_on_until_enough_remain():
    """The 40 nearest are the query's own patient's, and still three others are found."""
    embeds = vectors(100)
    embeds[:40] = embeds[0] + 0.01 * vectors(40, seed=2)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    index = ImageIndex.build(embeds, rows(100, images_a_patient=40))
    query = embeds[:1]
    assert set(numbers(index.nearest(query, 3))[0]) <= set(range(40))
    found = numbers(index.nearest(query, 3, patients=[("reports", "p0")]))
    assert found == plain_nearest(embeds, query, 3, [set(range(40))])
    # Fewer than asked for where there are no more; none where all are the patient's own.
    assert len(index.nearest(query, 70, patients=["p0"])[0]) == 60
    alone = ImageIndex.build(embeds[:40], rows(40, images_a_patient=40))
    assert alone.nearest(query, 3, patients=["p0"]) == [[]]


def test_the_same_pixels_are_left_out_where_no_patient_is_known():
    nobody = rows(6).map(lambda row: {"patients": []}, features=FEATURES)
    index = ImageIndex.build(vectors(6), nobody)
    found = numbers(index.nearest(vectors(6)[:1], 6, [["second0", "pixels3"]]))[0]
    assert sorted(found) == [1, 2, 4, 5]


def test_a_patient_of_the_same_name_in_another_source_is_another():
    index = ImageIndex.build(vectors(4), rows(4))
    query = vectors(4)[:1]
    assert numbers(index.nearest(query, 1, patients=[("knee", "p0")])) == [[0]]
    assert numbers(index.nearest(query, 1, patients=[("reports", "p0")])) != [[0]]
    assert numbers(index.nearest(query, 1, patients=["p0"])) != [[0]]


def test_cells_find_what_the_flat_index_finds(monkeypatch):
    # In clumps, as images of a kind are.
    centres = vectors(40, 32, seed=3)
    embeds = np.repeat(centres, 100, axis=0) + 0.7 * vectors(4000, 32, seed=4)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    queries = centres + 0.7 * vectors(40, 32, seed=5)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    flat = ImageIndex.build(embeds, rows(4000, images_a_patient=100))
    monkeypatch.setattr(module, "_MAX_FLAT", 3999)
    cells = ImageIndex.build(embeds, rows(4000, images_a_patient=100))
    assert (flat.info["index_type"], cells.info["index_type"]) == ("flat", "ivf")
    assert cells.info["nprobe"] < cells.info["num_cells"]
    assert cells.info["recall_at_10"] >= 0.99
    pairs = zip(numbers(flat.nearest(queries, 5)), numbers(cells.nearest(queries, 5)), strict=True)
    assert np.mean([len(set(one) & set(two)) / 5 for one, two in pairs]) > 0.95
    # A whole clump is one patient's, whose cells hold nobody else: other cells are looked into.
    patients = [("reports", f"p{i}") for i in range(40)]
    found = cells.nearest(queries, 5, patients=patients)
    assert all(len(matches) == 5 for matches in found)
    assert all(f"p{match.number // 100}" != f"p{i}" for i, matches in enumerate(found) for match in matches)


def made_index():
    index = ImageIndex.build(vectors(12), rows(12))
    index.info |= {"encoder_hash": "e1", "data_hash": "d1", "encoder_dir": "runs/encoder", "data_dir": "runs/data"}
    return index


@pytest.mark.parametrize("index_type", ["flat", "ivf"])
def test_what_was_saved_is_found_again(tmp_path, index_type):
    index = ImageIndex.build(vectors(200), rows(200), index_type)
    index.info |= {"encoder_hash": "e1", "data_hash": "d1"}
    index.save(tmp_path)
    index.save(tmp_path)  # over the old one
    loaded = ImageIndex.load(tmp_path, "e1", "d1")
    query = vectors(3, seed=9)
    assert loaded.nearest(query, 4) == index.nearest(query, 4)
    assert loaded.info["index_type"] == index_type
    assert not list(tmp_path.glob("unfinished*"))


def test_another_encoder_or_other_data_is_an_error(tmp_path):
    made_index().save(tmp_path)
    with pytest.raises(
        InputError,
        match=r"index of another encoder than the one given \(runs/encoder.*recipes/index.py and --overwrite",
    ):
        ImageIndex.load(tmp_path, "e2", "d1")
    with pytest.raises(InputError, match=r"index of other data than those given \(runs/data.*--overwrite"):
        ImageIndex.load(tmp_path, "e1", "d2")


def test_half_an_index_is_none(tmp_path, monkeypatch):
    made_index().save(tmp_path)
    whole = (tmp_path / "index.json").read_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.safetensors.torch, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        made_index().save(tmp_path)
    with pytest.raises(InputError, match=r"holds no whole index \(index.json is missing\)"):
        ImageIndex.load(tmp_path)
    monkeypatch.undo()
    made_index().save(tmp_path)
    assert json.loads((tmp_path / "index.json").read_text()) == json.loads(whole)
    (tmp_path / "index.faiss").write_bytes((tmp_path / "index.faiss").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"index.faiss: is not the file that index.json was written with"):
        ImageIndex.load(tmp_path)


def test_files_of_pairs_that_are_still_there(tmp_path):
    index = made_index()
    index.info["data_dir"] = str(tmp_path)
    (tmp_path / "3.png").touch()
    assert index.image_paths(["r3", "r4", "unknown"]) == {"r3": tmp_path / "3.png"}


def test_nothing_to_index():
    with pytest.raises(InputError, match="there is no image to index"):
        ImageIndex.build(np.empty((0, 4), dtype=np.float32), rows(1).select([]))

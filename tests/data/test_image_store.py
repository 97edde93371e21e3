import os

import pytest
from PIL import Image

from medfinetune.data import image_store
from medfinetune.data.images import ImageOptions, StoredImage
from medfinetune.data.journal import JOURNAL
from medfinetune.data.unreadable import UnreadableImage
from tests.data.raw_folders import save


@pytest.fixture
def paths(tmp_path):
    found = [str(save(tmp_path / "raw" / f"{i}.png", i)) for i in range(6)]
    broken = tmp_path / "raw" / "broken.png"
    broken.write_bytes(b"no image")
    return [*found[:3], str(broken), *found[3:]]


def store(paths, output_dir, max_side_px, num_workers) -> dict:
    return dict(image_store.store_images(paths, output_dir, ImageOptions(max_side_px), num_workers))


def forbid_opening(monkeypatch, *allowed: str):
    real = image_store.store_image

    def checked(path, *rest):
        # Any other exception would be taken for the file's own fault.
        if path not in allowed:
            raise KeyboardInterrupt(f"{path} is opened again")
        return real(path, *rest)

    monkeypatch.setattr(image_store, "store_image", checked)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_bad_file_stops_nothing(tmp_path, paths, num_workers):
    outcomes = store(paths, tmp_path / "out", 2240, num_workers)
    assert set(outcomes) == set(paths)
    bad = [path for path, outcome in outcomes.items() if isinstance(outcome, UnreadableImage)]
    assert [os.path.basename(path) for path in bad] == ["broken.png"]
    assert outcomes[bad[0]].reason == "not an image"


def test_a_second_run_opens_only_what_is_not_done(tmp_path, paths, monkeypatch):
    first = store(paths, tmp_path / "out", 2240, 1)
    forbid_opening(monkeypatch, paths[3])
    second = store(paths, tmp_path / "out", 2240, 1)
    good = [path for path in paths if isinstance(first[path], StoredImage)]
    assert len(good) == 6
    assert all(first[path] == second[path] for path in good)


def test_journal_survives_a_torn_line_and_foreign_ones(tmp_path, paths, monkeypatch):
    store(paths[:3], tmp_path / "out", 2240, 1)
    journal = tmp_path / "out" / JOURNAL
    journal.write_text(journal.read_text()[:-20] + "\n[]\n{}\n\nnonsense\n{")
    forbid_opening(monkeypatch, *paths[2:])
    outcomes = store(paths, tmp_path / "out", 2240, 1)
    assert sum(isinstance(outcome, StoredImage) for outcome in outcomes.values()) == 6
    forbid_opening(monkeypatch, paths[3])
    store(paths, tmp_path / "out", 2240, 1)


def test_changed_file_other_size_and_lost_copy_are_stored_again(tmp_path):
    path = save(tmp_path / "a.png", 1)
    first = store([str(path)], tmp_path / "out", 2240, 1)[str(path)]
    save(path, 2)
    second = store([str(path)], tmp_path / "out", 2240, 1)[str(path)]
    assert first.sha256 != second.sha256
    reduced = store([str(path)], tmp_path / "out", 6, 1)[str(path)]
    assert Image.open(tmp_path / "out" / reduced.file).size == (6, 5)
    (tmp_path / "out" / second.file).unlink()
    store([str(path)], tmp_path / "out", 2240, 1)
    assert (tmp_path / "out" / second.file).is_file()


@pytest.mark.parametrize("values", [{"window_hu": (40, 400)}, {"dicom_frame": 1}, {"patient_key": b"k"}])
def test_other_options_open_the_image_again(tmp_path, monkeypatch, values):
    path = str(save(tmp_path / "a.png", 1))
    dict(image_store.store_images([path], tmp_path / "out", ImageOptions(), 1))
    forbid_opening(monkeypatch)
    dict(image_store.store_images([path], tmp_path / "out", ImageOptions(), 1))
    with pytest.raises(KeyboardInterrupt, match="opened again"):
        dict(image_store.store_images([path], tmp_path / "out", ImageOptions(**values), 1))


@pytest.mark.parametrize("in_place", [True, False])
def test_other_pixels_of_the_same_size_and_time_are_noticed(tmp_path, in_place):
    """As `rsync -t` and `cp -p` leave them."""
    path = tmp_path / "a.bmp"
    save(path, 1)
    os.utime(path, (1, 1))
    first = store([str(path)], tmp_path / "out", 2240, 1)[str(path)]
    other = save(tmp_path / "b.bmp", 2)
    if in_place:
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    os.utime(path, (1, 1))
    assert store([str(path)], tmp_path / "out", 2240, 1)[str(path)].sha256 != first.sha256


def test_images_out_of_a_table_are_known_by_their_content(tmp_path, monkeypatch):
    path = save(tmp_path / "out" / image_store.INCOMING_DIR / "a.png", 1)
    first = store([str(path)], tmp_path / "out", 2240, 1)
    path.unlink()
    save(path, 1)
    forbid_opening(monkeypatch)
    assert store([str(path)], tmp_path / "out", 2240, 1) == first


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_cannot_be_written_is_no_images_fault(tmp_path, paths, num_workers):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").mkdir()
    for i in range(256):
        (tmp_path / "out" / "images" / f"{i:02x}").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="exists"):
        store(paths, tmp_path / "out", 2240, num_workers)


def test_unfinished_files_are_removed(tmp_path):
    unfinished = save(tmp_path / "out" / "images" / "ab" / "x.png", 1).rename(tmp_path / "out/images/ab/x.png.1.tmp")
    store([], tmp_path / "out", 2240, 1)
    assert not unfinished.exists()


def test_a_file_that_kills_its_process_is_found(tmp_path, paths, monkeypatch):
    real = image_store.store_image

    def deadly(path, *rest):
        if path == paths[4]:
            os._exit(11)
        return real(path, *rest)

    monkeypatch.setattr(image_store, "store_image", deadly)
    outcomes = store(paths, tmp_path / "out", 2240, 2)
    assert outcomes[paths[4]].reason == "opening it kills the process"
    assert sum(isinstance(outcome, StoredImage) for outcome in outcomes.values()) == 5


def test_an_error_that_nobody_foresaw_is_one_files_own(tmp_path, paths, monkeypatch):
    real = image_store.store_image

    def fail(path, *rest):
        if path == paths[1]:
            raise RecursionError("too deep")
        return real(path, *rest)

    monkeypatch.setattr(image_store, "store_image", fail)
    outcomes = store(paths, tmp_path / "out", 2240, 1)
    assert outcomes[paths[1]].detail == "RecursionError: too deep"
    assert sum(isinstance(outcome, StoredImage) for outcome in outcomes.values()) == 5

import gc

import pytest

from medfinetune.data.images import StoredImage
from medfinetune.data.journal import JOURNAL, Journal
from tests.data.raw_folders import save

IMAGE = StoredImage("1", "images/1.png", 4, 2, "00", {"view": "AP"}, "p", True)


def test_what_was_added_is_found_again_while_its_file_is_there(tmp_path):
    save(tmp_path / IMAGE.file, 1)
    with Journal(tmp_path) as journal:
        assert journal.find("a") is None
        journal.add("a", IMAGE)
    with Journal(tmp_path) as journal:
        assert journal.find("a") == IMAGE
        (tmp_path / IMAGE.file).unlink()
        assert journal.find("a") is None


def test_lines_of_an_earlier_version_are_passed_over(tmp_path):
    save(tmp_path / IMAGE.file, 1)
    (tmp_path / JOURNAL).write_text('{"key": "a", "sha": "1"}\n{"key": "b"')
    with Journal(tmp_path) as journal:
        assert journal.find("a") is None
        journal.add("c", IMAGE)
    with Journal(tmp_path) as journal:
        assert journal.find("c") == IMAGE


def test_postponed_files_come_in_order(tmp_path):
    with Journal(tmp_path) as journal:
        for path in ("b", "a", "c"):
            journal.postpone(path, f"key {path}")
        assert journal.num_waiting == 3
        assert list(journal.waiting()) == [("b", "key b"), ("a", "key a"), ("c", "key c")]


@pytest.mark.filterwarnings("error")
def test_a_journal_closed_while_it_is_read_says_nothing(tmp_path):
    with Journal(tmp_path) as journal:
        for path in ("a", "b"):
            journal.postpone(path, path)
        waiting = journal.waiting()
        assert next(waiting) == ("a", "a")
    del waiting
    gc.collect()

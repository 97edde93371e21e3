"""Reports of many images: each once, whatever happens on the way."""

import json
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress

import pytest

from medfinetune.data.evidence import Evidence
from medfinetune.errors import InputError
from medfinetune.evaluation.latency import StageClock
from medfinetune.inference import batches as module
from medfinetune.inference.batches import write_reports
from medfinetune.inference.config import ReportConfig
from medfinetune.inference.listing import count_requests
from medfinetune.inference.report import Report, Unwritten
from medfinetune.inference.rerank import Candidate
from tests.benchmarks.alone import measure


class Writer:
    """Stands in for the pipeline: writes at once, in another order, and may be ended in the middle."""

    words = None

    def __init__(self, ends_after=None, unreadable=()):
        self.clock, self.written, self._left, self._unreadable = StageClock(), [], ends_after, set(unreadable)

    def stream(self, requests, options):
        for place in reversed(range(len(requests))):
            request = requests[place]
            if self._left is not None:
                if self._left == 0:
                    raise KeyboardInterrupt
                self._left -= 1
            if request.id in self._unreadable:
                yield place, Unwritten(request.id, request.paths, "does not open")
                continue
            self.written.append(request.id)
            only = Candidate(self.words or f"Text of {request.id}.", 1, 0.1, int(request.id[3:-4]) / 1e6, 1.0, 1.0)
            yield place, Report(request.id, only.text, request.language, request.paths, Evidence(), "none", [only])


@pytest.fixture
def config(tmp_path):
    (tmp_path / "images.txt").write_text("".join(f"im-{i}.png\n" for i in range(20)))
    return make_config(tmp_path)


def make_config(folder, **changed):
    given = {"input": str(folder / "images.txt"), "output_dir": str(folder / "out"), "shard_size": 6, "num_on_page": 0}
    return ReportConfig(**({"encoder_dir": "encoder", "decoder_dir": "decoder"} | given | changed))


def write(config, writer):
    return write_reports(config, count_requests(config), lambda: writer)


def lines(config, name="reports.jsonl"):
    with open(f"{config.output_dir}/{name}", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_reports_stand_in_the_order_of_the_input(config):
    summary = write(config, Writer())
    assert (summary.num_written, summary.num_failed, summary.num_new) == (20, 0, 20)
    assert [row["id"] for row in lines(config)] == [f"im-{i}.png" for i in range(20)]
    assert [row["number"] for row in lines(config)] == list(range(20))
    assert lines(config)[7]["text"] == "Text of im-7.png."
    assert write(config, Writer()).num_new == 0


@pytest.mark.parametrize("num_lost", [1, 9])  # the end of the line alone, and a part of it
@pytest.mark.parametrize("ends_after", [0, 1, 6, 13])
def test_a_run_that_was_ended_goes_on(config, ends_after, num_lost):
    first, second = Writer(ends_after), Writer()
    with pytest.raises(KeyboardInterrupt):
        write(config, first)
    shards = sorted((module.Path(config.output_dir) / "shards").iterdir())
    torn = [path for path in shards if path.stat().st_size]
    if torn:  # the last line was written in part
        torn[-1].write_bytes(torn[-1].read_bytes()[:-num_lost])
    write(config, second)
    lost = first.written[-1:] if torn else []
    assert sorted(first.written + second.written) == sorted([f"im-{i}.png" for i in range(20)] + lost)
    assert [row["id"] for row in lines(config)] == [f"im-{i}.png" for i in range(20)]


def test_processes_share_the_shards(config, monkeypatch):
    """Two by turns, of which one is ended; then three; then one: each image once."""
    written = []

    def run_one(num, number, writer):
        monkeypatch.setattr(module, "world_size", lambda: num)
        monkeypatch.setattr(module, "rank", lambda: number)
        with suppress(KeyboardInterrupt):
            module._write_own_shards(config, 20, lambda: writer)
        written.extend(writer.written)

    def run(num, ends_after=None):
        for number in range(num):
            run_one(num, number, Writer(ends_after if number else None))

    run(2, ends_after=2)
    assert len(written) == 14  # shards of 6 + 6, and 2 of the other process's
    run(3)
    assert sorted(written) == sorted(f"im-{i}.png" for i in range(20))
    monkeypatch.undo()
    assert write(config, Writer()).num_new == 0
    assert [row["number"] for row in lines(config)] == list(range(20))


def test_what_failed_is_told_and_tried_again(config):
    summary = write(config, Writer(unreadable=["im-3.png", "im-15.png"]))
    assert (summary.num_written, summary.num_failed) == (18, 2)
    assert "2 failed, see failed.jsonl" in summary.describe("out")
    assert [(row["number"], row["id"], row["reason"]) for row in lines(config, "failed.jsonl")] == [
        (3, "im-3.png", "does not open"),
        (15, "im-15.png", "does not open"),
    ]
    mended = Writer(unreadable=["im-15.png"])
    assert write(config, mended).num_new == 1
    assert mended.written == ["im-3.png"]
    assert [row["number"] for row in lines(config)] == [i for i in range(20) if i != 15]
    assert len(lines(config, "failed.jsonl")) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("language", "zh"), ("seed", 1), ("shard_size", 5), ("decoder_dir", "other")]
)
def test_changed_settings_need_another_folder(config, tmp_path, name, value):
    write(config, Writer())
    with pytest.raises(InputError, match=f"was begun with {name} .*; go on with the same, or take a new output_dir"):
        write(make_config(tmp_path, **{name: value}), Writer())
    # These decide no text.
    assert write(make_config(tmp_path, batch_size=3, num_processes=2), Writer()).num_new == 0


def test_another_model_in_the_same_place_needs_another_folder(config):
    def run(**made_with):
        return write_reports(config, count_requests(config), Writer, made_with)

    run(encoder_hash="e1", decoder_hash="d1")
    with pytest.raises(InputError, match=r"was begun with another decoder: .* take a new output_dir"):
        run(encoder_hash="e1", decoder_hash="d2")
    assert run(encoder_hash="e1", decoder_hash="d1").num_new == 0


def test_another_list_needs_another_folder_but_may_grow(config, tmp_path):
    write(config, Writer())
    listed = tmp_path / "images.txt"
    listed.write_text(listed.read_text() + "im-20.png\nim-21.png\n")
    assert write(config, Writer()).num_new == 2
    assert len(lines(config)) == 22
    listed.write_text("im-99.png\n" + listed.read_text())
    with pytest.raises(InputError, match=r"image 1 of the input was im-0.png, and is im-99.png now"):
        write(config, Writer())


def test_a_line_may_be_cut_within_a_character(config):
    write(config, Writer())
    shard = module.Path(config.output_dir) / "shards" / "00000001.jsonl"
    whole = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(whole[:-1]) + '{"text": "未'.encode()[:-1])
    again = Writer()
    assert write(config, again).num_new == len(again.written) == 1
    assert [row["number"] for row in lines(config)] == list(range(20))


def test_a_line_separator_within_a_text_ends_no_line(config, monkeypatch):
    monkeypatch.setattr(Writer, "words", "One.\u2028Two.\x85Three.\r")
    write(config, Writer())
    assert write(config, Writer()).num_new == 0
    assert lines(config)[0]["text"] == "One.\u2028Two.\x85Three.\r"


def test_a_name_that_is_no_unicode_is_told_and_stops_nothing(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    odd = os.fsdecode(b"im-\xe9.png")
    for name in ("im-1.png", odd):
        (folder / name).touch()
    config = make_config(tmp_path, input=str(folder))
    for num_new in (1, 0):
        summary = write(config, Writer(unreadable=[odd]))
        assert (summary.num_written, summary.num_failed, summary.num_new) == (1, 1, num_new)
    assert lines(config, "failed.jsonl")[0]["id"] == odd


def test_other_images_of_the_same_names_are_not_taken_for_written(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "im-1.png").write_bytes(folder.encode())
    write(make_config(tmp_path, input=str(tmp_path / "a")), Writer())
    with pytest.raises(InputError, match=r"image 1 of the input is im-1.png as before, but not the same \(file"):
        write(make_config(tmp_path, input=str(tmp_path / "b")), Writer())
    (tmp_path / "a" / "im-1.png").write_bytes(b"another")
    with pytest.raises(InputError, match=r"im-1.png as before, but not the same"):
        write(make_config(tmp_path, input=str(tmp_path / "a")), Writer())


@pytest.mark.parametrize("row", ["im-1.png,zh,7,Why?", "im-1.png,en,8,Why?", "im-1.png,en,7,Where?"])
def test_another_language_patient_or_prompt_is_another_report(tmp_path, row):
    listed, header = tmp_path / "list.csv", "image,language,patient_id,prompt\n"
    listed.write_text(header + "im-1.png,en,7,Why?\n")
    write(make_config(tmp_path, input=str(listed)), Writer())
    listed.write_text(header + row + "\n")
    with pytest.raises(InputError, match="not the same"):
        write(make_config(tmp_path, input=str(listed)), Writer())


def test_of_a_list_that_became_shorter_the_rest_is_left_out(config, tmp_path):
    write(config, Writer())
    (tmp_path / "images.txt").write_text("".join(f"im-{i}.png\n" for i in range(8)))
    summary = write(config, Writer())
    assert (summary.num_written, summary.num_new) == (8, 0)
    assert [row["number"] for row in lines(config)] == list(range(8))


def test_an_index_of_other_settings_needs_another_folder(config, tmp_path, monkeypatch):
    info = {"encoder_hash": "e", "data_hash": "d", "settings": {"num_neighbours": 3}}
    monkeypatch.setattr(module, "read_info", lambda folder: info)
    with_index = make_config(tmp_path, index_dir="index")
    write(with_index, Writer())
    info["settings"] = {"num_neighbours": 1}
    with pytest.raises(InputError, match=r"was begun with index_settings \{'num_neighbours': 3\}, and it is"):
        write(with_index, Writer())


def test_one_run_at_a_time(config, tmp_path):
    class Second(Writer):
        def stream(self, requests, options):
            write(make_config(tmp_path), Writer())
            yield from ()

    with pytest.raises(InputError, match="another run is writing here"):
        write(config, Second())


def test_a_folder_of_something_else_is_left(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "reports.jsonl").write_text("mine\n")
    with pytest.raises(InputError, match=r"holds a reports.jsonl of something else"):
        write(config, Writer())
    assert (tmp_path / "out" / "reports.jsonl").read_text() == "mine\n"


def test_the_page_shows_the_most_doubtful(config, tmp_path):
    write(make_config(tmp_path, num_on_page=4), Writer())
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert [i for i in range(20) if f"Text of im-{i}.png." in page] == [0, 1, 2, 3]
    assert "20 written, of which the 4 most doubtful are shown" in page


def peak_mib(folder, num):
    folder.mkdir()
    (folder / "images.txt").write_text("".join(f"im-{random.randrange(9)}.png\n" for _ in range(num)))
    config, writer = make_config(folder, shard_size=256, num_on_page=20), Writer()
    writer.written = Forgetful()
    return measure(lambda: write(config, writer))["mib"]


@pytest.mark.slow
def test_many_images_take_no_more_memory_than_few(tmp_path):
    # In a process of its own: here, holes that other tests left in the heap would be counted as they are filled again.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        first, few, many = (
            alone.submit(peak_mib, tmp_path / name, num).result()
            for name, num in (("first", 1000), ("few", 1000), ("many", 100_000))
        )
    # A hundred times as many: their requests alone would take more than this.
    assert many < few + 12, f"{first:.1f} with all imports, then {few:.1f} and {many:.1f} MiB"


class Forgetful(list):
    def append(self, item):
        pass

"""Stores many images with every core, and remembers in a journal what is done, so that a killed run goes on."""

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from medfinetune.data.images import StoredImage, UnreadableImage, store_image

JOURNAL = "images/journal.jsonl"
# Part of each journal key: raise it when `open_image` gives other pixels for some file than before.
_DECODER_VERSION = 1

Outcome = StoredImage | UnreadableImage


def store_images(
    paths: Iterable[str], output_dir: Path, max_side_px: int, num_workers: int | None = None
) -> dict[str, Outcome]:
    """Stores the image files by `store_image`; a bad one stops nothing.

    Args:
        paths: Image files, without repetitions.
        output_dir: The output folder; what its journal lists as stored is not opened again.
        max_side_px: See `store_image`.
        num_workers: Processes; as many as there are cores where left out.

    Returns:
        For each path the stored image, or why there is none.
    """
    _remove_unfinished(output_dir)
    done = _read_journal(output_dir)
    keys = {path: _key(path, max_side_px) for path in paths}
    outcomes: dict[str, Outcome] = {path: done[key] for path, key in keys.items() if key in done}
    todo = [path for path in keys if path not in outcomes]
    if not todo:
        return outcomes
    num_workers = min(num_workers or len(os.sched_getaffinity(0)), len(todo))
    (output_dir / JOURNAL).parent.mkdir(parents=True, exist_ok=True)
    with (
        (output_dir / JOURNAL).open("a", encoding="utf-8") as journal,
        tqdm(total=len(keys), initial=len(outcomes), desc="images", unit="image") as progress,
    ):
        # A kill may have left half a line.
        journal.write("\n")
        for path, outcome in _run(todo, output_dir, max_side_px, num_workers):
            outcomes[path] = outcome
            # Failures are tried again by the next run: they are quick, and a later version may open the file.
            if isinstance(outcome, StoredImage):
                journal.write(json.dumps({"key": keys[path]} | asdict(outcome)) + "\n")
                journal.flush()
            progress.update()
    return outcomes


def _run(paths: list[str], output_dir: Path, max_side_px: int, num_workers: int) -> Iterator[tuple[str, Outcome]]:
    if num_workers == 1:
        for path in paths:
            yield path, _store(path, output_dir, max_side_px)
        return
    lost: list[str] = []
    for path, outcome in _run_in_pool(paths, output_dir, max_side_px, num_workers):
        if outcome is None:
            lost.append(path)
        else:
            yield path, outcome
    # A file that kills its process takes the whole pool with it; one by one, the guilty one is found.
    for path in lost:
        for _, outcome in _run_in_pool([path], output_dir, max_side_px, 1):
            yield (
                path,
                outcome or UnreadableImage("opening it kills the process", "damaged, or too large for the memory"),
            )


def _run_in_pool(
    paths: list[str], output_dir: Path, max_side_px: int, num_workers: int
) -> Iterator[tuple[str, Outcome | None]]:
    """Yields outcomes as they come; None for all that were not done when a process died."""
    # Forking takes no second import of torch and datasets by each process; only Pillow and NumPy run in them.
    context = multiprocessing.get_context("fork")
    waiting = iter(paths)
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker) as pool:
        futures = {}
        broken = False
        while True:
            # Few are in flight at a time: memory does not grow with their number.
            for path in itertools.islice(waiting, 0 if broken else 4 * num_workers - len(futures)):
                try:
                    futures[pool.submit(_store, path, output_dir, max_side_px)] = path
                except BrokenProcessPool:
                    broken = True
                    yield path, None
                    break
            if not futures:
                break
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                path = futures.pop(future)
                try:
                    yield path, future.result()
                except BrokenProcessPool:
                    broken = True
                    yield path, None
        for path in waiting:
            yield path, None


def _store(path: str, output_dir: Path, max_side_px: int) -> Outcome:
    try:
        return store_image(path, output_dir, max_side_px)
    except UnreadableImage as error:
        return error


def _start_worker() -> None:
    # Ctrl-C is for the main process, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker whose main process was killed would wait for work forever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _key(path: str, max_side_px: int) -> str:
    try:
        stat = os.stat(path)
    except OSError:
        # Reported by `store_image`, with its reason.
        return path
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{max_side_px}|{_DECODER_VERSION}"


def _read_journal(output_dir: Path) -> dict[str, StoredImage]:
    done: dict[str, StoredImage] = {}
    if not (output_dir / JOURNAL).is_file():
        return done
    with (output_dir / JOURNAL).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
                key, image = entry.pop("key"), StoredImage(**entry)
            except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
                continue
            if (output_dir / image.file).is_file():
                done[key] = image
    return done


def _remove_unfinished(output_dir: Path) -> None:
    for path in (output_dir / "images").glob("*/*.tmp"):
        path.unlink(missing_ok=True)

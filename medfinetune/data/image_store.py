"""Stores many images with every core; what the journal lists as done is not opened again."""

import hashlib
import hmac
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from medfinetune.data.images import PART, ImageOptions, StoredImage, store_image
from medfinetune.data.journal import Journal
from medfinetune.data.unreadable import UnreadableImage

INCOMING_DIR = "images/incoming"
"""Where images lie during a run that stood in a table as bytes, named after their content."""
# Part of each journal key: raise it when `open_image` gives other pixels for some file than before.
_DECODER_VERSION = 3

Outcome = StoredImage | UnreadableImage
_File = tuple[str, str]  # path and journal key


def store_images(
    paths: Iterable[str],
    output_dir: Path,
    options: ImageOptions,
    num_workers: int | None = None,
    num_paths: int | None = None,
    forget_others: bool = False,
) -> Iterator[tuple[str, Outcome]]:
    """Stores the image files by `store_image`; a bad one stops nothing.

    Args:
        paths: Image files, without repetitions.
        output_dir: The output folder; what its journal lists as stored is not opened again.
        options: See `store_image`.
        num_workers: Processes; as many as there are cores where left out.
        num_paths: How many there are, for the progress bar.
        forget_others: At the end, files that are not among `paths` leave the journal.

    Yields:
        Each path with the stored image, or with why there is none; in any order.

    Raises:
        OSError: The output folder cannot be written: no fault of an image.
    """
    _remove_unfinished(output_dir)
    settings = _settings(options)
    with Journal(output_dir) as journal, tqdm(total=num_paths, desc="images", unit="image") as progress:
        for path in paths:
            key = _key(path, settings, output_dir)
            image = journal.find(key)
            if image is None:
                journal.postpone(path, key)
            else:
                progress.update()
                yield path, image
        todo = journal.num_waiting
        num_workers = min(num_workers or len(os.sched_getaffinity(0)), max(todo, 1))
        progress.initial = progress.n
        for (path, key), outcome in _run(journal.waiting(), output_dir, options, num_workers):
            # Failures are tried again by the next run: they are quick, and a later version may open the file.
            if isinstance(outcome, StoredImage):
                journal.add(key, outcome)
            progress.update()
            yield path, outcome
        if forget_others:
            journal.forget_others()


def _settings(options: ImageOptions) -> str:
    """What the stored pixels and the patient's hash depend on besides the file itself."""
    # Of the key no more is written than is needed to notice that it is another one.
    key = hmac.new(options.patient_key, b"journal", hashlib.sha256).hexdigest()[:8] if options.patient_key else ""
    patients = (options.ignore_patients, key)
    parts = (options.max_side_px, options.window_hu, options.dicom_frame, *patients, _DECODER_VERSION)
    return "|".join(map(str, parts))


def _run(
    files: Iterable[_File], output_dir: Path, options: ImageOptions, num_workers: int
) -> Iterator[tuple[_File, Outcome]]:
    if num_workers == 1:
        for file in files:
            yield file, _store(file[0], output_dir, options)
        return
    waiting = iter(files)
    while True:
        lost: list[_File] = []
        for file, outcome in _run_in_pool(waiting, output_dir, options, num_workers):
            if outcome is None:
                lost.append(file)
            else:
                yield file, outcome
        if not lost:
            return
        # A file that kills its process takes the whole pool with it; one by one, the guilty one is found.
        for file in lost:
            for _, outcome in _run_in_pool(iter([file]), output_dir, options, 1):
                killed = UnreadableImage("opening it kills the process", "damaged, or too large for the memory")
                yield file, outcome or killed


def _run_in_pool(
    waiting: Iterator[_File], output_dir: Path, options: ImageOptions, num_workers: int
) -> Iterator[tuple[_File, Outcome | None]]:
    """Yields outcomes as they come; None for those in flight when a process died, and then ends."""
    # Forking takes no second import of torch and datasets by each process; only Pillow and NumPy run in them.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker) as pool:
        futures = {}
        broken = False
        while True:
            # Few are in flight at a time: memory does not grow with their number.
            for file in itertools.islice(waiting, 0 if broken else 4 * num_workers - len(futures)):
                try:
                    futures[pool.submit(_store, file[0], output_dir, options)] = file
                except BrokenProcessPool:
                    broken = True
                    yield file, None
                    break
            if not futures:
                return
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                file = futures.pop(future)
                try:
                    yield file, future.result()
                except BrokenProcessPool:
                    broken = True
                    yield file, None


def _store(path: str, output_dir: Path, options: ImageOptions) -> Outcome:
    try:
        return store_image(path, output_dir, options)
    except UnreadableImage as error:
        return error
    except OSError:
        # Errors of reading come as UnreadableImage: this is the disk that is full, for every image.
        raise
    except Exception as error:
        # Whatever it is, it is this one file's: the others are not to wait for it.
        return UnreadableImage("damaged image", f"{type(error).__name__}: {error}"[:300])


def _start_worker() -> None:
    # Ctrl-C is for the main process, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker whose main process was killed would wait for work forever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _key(path: str, settings: str, output_dir: Path) -> str:
    try:
        stat = os.stat(path.partition(PART)[0])
    except (OSError, ValueError):
        # Reported by `store_image`, with its reason.
        return path
    if path.startswith(f"{output_dir / INCOMING_DIR}{os.sep}"):
        # Written anew by every run; the name is that of the content.
        return f"{path}|{settings}"
    # Not the time of change alone: copying tools set it back to that of the original.
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}|{stat.st_ctime_ns}|{settings}"


def _remove_unfinished(output_dir: Path) -> None:
    for path in (output_dir / "images").glob("*/*.tmp"):
        path.unlink(missing_ok=True)

"""Lets one run at a time write into an output folder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfinetune.errors import InputError

LOCK_FILE = ".lock"

# Some network file systems know no locks: better to run there unguarded than not at all.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[int] = set()


@contextmanager
def only_writer(output_dir: Path) -> Iterator[None]:
    """Holds `output_dir/.lock`; the system lets go of it however the process ends.

    Raises:
        InputError: Another process holds it.
        OSError: The folder is missing or cannot be written.
    """
    file = os.open(output_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{output_dir}: another run is writing here (output_dir); wait for its end") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        _held.add(file)
        yield
    finally:
        _held.discard(file)
        os.close(file)


def _let_go() -> None:
    for file in _held:
        os.close(file)
    _held.clear()


# A worker that outlives its killed parent for a moment would hold up the run that goes on.
os.register_at_fork(after_in_child=_let_go)

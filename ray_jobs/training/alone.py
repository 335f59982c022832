"""One run folder, one training at a time: two would write the same files."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

log = logging.getLogger(__name__)
LOCK = ".lock"
ON = " on "
LOOKS = 5
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def only_one(run_dir: Path) -> Iterator[None]:
    """Inside, no other process trains in ``run_dir``. Raises ValueError where one does, on this machine or another.

    The lock goes with its process, however that ends. File systems without locks let everybody in.
    """
    with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            lock(file)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "which has not said who it is"
            raise ValueError(
                f"{run_dir} is being trained in by another process ({who}). Wait for it, end it with 'palate status "
                f"{run_dir} --stop', or give this run another run.name."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.info("%s has no locks; nothing keeps a second training out of it", run_dir)
        file.truncate(0)
        file.write(f"process {os.getpid()}{ON}{socket.gethostname()}\n")
        file.flush()
        yield


def lock(file: TextIO) -> None:
    """Raises BlockingIOError where another process keeps the lock; one that only looks has it for a moment."""
    for left in reversed(range(LOOKS)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.1)


def is_trained_in(run_dir: Path) -> bool | None:
    """Whether a process of this machine trains in ``run_dir``; None where the last one was of another machine, whose
    locks may not be seen from here, or where nothing tells."""
    try:
        with (run_dir / LOCK).open(encoding="utf-8") as file:
            if file.read().strip().rpartition(ON)[2] != socket.gethostname():
                return None
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False

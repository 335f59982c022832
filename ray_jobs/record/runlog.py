"""``run.log``: what a run says in words, kept in its folder and shown by the driver while it runs."""

import errno
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

LOG_FILE = "run.log"
SPEAKERS = ("dpo_core", "ray_jobs")
ALOUD = (" WARNING ", " ERROR ")
FORM = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
ENDED = " ERROR the run has ended: "
FULL = (errno.ENOSPC, errno.EDQUOT)
TAIL_BYTES = 8192


@contextmanager
def full_disk_is_users(run_dir: Path) -> Iterator[None]:
    """Inside, a full disk is a ValueError: the user's to mend, told in one line, and no reason for another attempt."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ValueError(
            f"{run_dir} cannot be written: {error}. Make room and give the same command again; it goes on from the "
            "newest checkpoint."
        ) from error


@contextmanager
def logged_end(run_dir: Path) -> Iterator[None]:
    """Inside, an error that ends the run stands in ``run.log`` too, for `ended_by`."""
    try:
        yield
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), "")
        if not isinstance(error, ValueError):
            why = f"{type(error).__name__}: {why}" if why else type(error).__name__
        with suppress(OSError), (run_dir / LOG_FILE).open("a", encoding="utf-8") as file:
            told = {"levelname": "ERROR", "msg": ENDED.partition(" ERROR ")[2] + why}
            file.write(FORM.format(logging.makeLogRecord(told)) + "\n")
        raise


def ended_by(run_dir: Path) -> str:
    """The error that has ended the run; empty where none has, or when it has been started again since."""
    path = run_dir / LOG_FILE
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-1].partition(ENDED)[2] if lines else ""


class RunLogHandler(logging.FileHandler):
    """Says nothing where it cannot write: on a full disk a traceback for every line would hide the one that counts."""

    def handleError(self, record: logging.LogRecord) -> None:
        del record


@contextmanager
def written_log(run_dir: Path) -> Iterator[None]:
    """Inside, what this process says of the run goes to the end of ``run.log`` as well."""
    handler = RunLogHandler(run_dir / LOG_FILE, delay=True, encoding="utf-8")
    handler.setFormatter(FORM)
    speakers = [logging.getLogger(name) for name in SPEAKERS]
    levels = [speaker.level for speaker in speakers]
    for speaker in speakers:
        speaker.addHandler(handler)
        speaker.setLevel(logging.INFO)
    try:
        yield
    finally:
        for speaker, level in zip(speakers, levels, strict=True):
            speaker.removeHandler(handler)
            speaker.setLevel(level)
        handler.close()


@contextmanager
def shown_log(run_dir: Path, console: Console) -> Iterator[None]:
    """Inside, warnings that workers add to ``run.log`` are printed; they may run on other machines."""
    path = run_dir / LOG_FILE
    start = path.stat().st_size if path.exists() else 0
    stop = threading.Event()

    def follow() -> None:
        position, ended = start, False
        while not ended:
            ended = stop.wait(1.0)
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(position)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            position += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                if any(level in line for level in ALOUD):
                    console.print(escape(line), highlight=False)

    thread = threading.Thread(target=follow, name="run.log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

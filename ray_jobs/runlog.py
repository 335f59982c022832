"""``run.log``: what a run says in words, kept in its folder and shown by the driver while it runs."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

LOG_FILE = "run.log"
SPEAKERS = ("dpo_core", "ray_jobs")
ALOUD = (" WARNING ", " ERROR ")


@contextmanager
def written_log(run_dir: Path) -> Iterator[None]:
    """Inside, what this process says of the run goes to the end of ``run.log`` as well."""
    handler = logging.FileHandler(run_dir / LOG_FILE, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
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

"""A copy of the run folder in object storage, for machines whose disks do not outlive them."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpo_core.checkpoint import MANIFEST, is_intact
from dpo_core.context import RunContext
from dpo_core.data.locations import file_system

log = logging.getLogger(__name__)

RECORDS = ("config.yaml", "metrics.jsonl", "ledger.jsonl", "quarantine.parquet", "spikes.jsonl", "validation.jsonl")
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
"""Between two attempts on a storage that does not answer; doubled from the first to the longest."""
START_LIMIT_S = 60.0
"""How long a run that begins waits for a storage that may hold its checkpoints."""
END_LIMIT_S = 600.0
"""How long a run that ends waits for its last uploads; after an error only `ERROR_LIMIT_S`."""
ERROR_LIMIT_S = 30.0


@contextmanager
def mirrored(url: str | None, context: RunContext, name: str, keep: int) -> Iterator["Mirror | None"]:
    """Inside, the run folder is mirrored to ``url/name`` by rank 0, after its newest checkpoint was brought from there.

    Raises ValueError when the storage cannot be read and the run folder holds no checkpoint to go on from.
    """
    if url is None:
        yield None
        return
    mirror = Mirror(f"{url.rstrip('/')}/{name}", context.run_dir, keep) if context.rank == 0 else None
    if mirror is not None:
        mirror.fetch()
    context.gather(None)  # every rank reads the checkpoint that rank 0 has brought
    limit = ERROR_LIMIT_S
    try:
        yield mirror
        limit = END_LIMIT_S
    finally:
        if mirror is not None:
            missing = mirror.finish(limit)
            if missing:
                log.warning("not in %s after %g s: %s", mirror.url, limit, ", ".join(missing))


class Mirror:
    """Keeps ``url`` like the run folder: checkpoints, records and the exported models.

    One thread sends what is new, in order, the manifest of a checkpoint last, so that it is complete or none. What
    fails is tried again until it succeeds; a checkpoint that the run itself has deleted meanwhile is passed over.
    """

    def __init__(self, url: str, run_dir: Path, keep: int) -> None:
        """Raises ValueError for a protocol that is not known or not installed."""
        self.url, self.run_dir, self.keep = url, run_dir, keep
        self._system, root = file_system(url)
        self._root = root.rstrip("/")
        self._sent: dict[str, tuple[object, ...]] = {}
        self._change = threading.Condition()
        self._asked = self._done = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def notify(self) -> None:
        """There is something new in the run folder. Returns at once."""
        with self._change:
            self._asked += 1
            self._change.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def finish(self, limit_s: float) -> list[str]:
        """Wait until everything has arrived, at most ``limit_s``, and end; what has not arrived by then."""
        self.notify()
        with self._change:
            self._change.wait_for(lambda: self._done == self._asked, limit_s)
            self._closed = True
            self._change.notify_all()
        return self.missing()

    def missing(self) -> list[str]:
        """What of the run folder has not arrived yet."""
        return [name for name, files in self._items() if self._sent.get(name) != _stamp(files)]

    def _work(self) -> None:
        wait = 0.0
        while True:
            with self._change:
                self._change.wait_for(lambda: self._asked > self._done or self._closed)
                if self._closed:
                    return
                asked = self._asked
            try:
                self._send()
            except Exception as error:  # each file system has exceptions of its own
                if wait == 0:
                    log.warning("%s does not take what the run has left, and is tried again: %s", self.url, error)
                wait = min(max(FIRST_WAIT_S, 2 * wait), LONGEST_WAIT_S)
                with self._change:
                    self._change.wait(wait)
                continue
            if wait:
                log.warning("%s has everything again", self.url)
            wait = 0.0
            with self._change:
                self._done = asked
                self._change.notify_all()

    def _items(self) -> list[tuple[str, list[Path]]]:
        """What belongs together, in the order in which it goes; the last file of each says that it is complete."""
        items = [(name, [self.run_dir / name]) for name in RECORDS if (self.run_dir / name).exists()]
        for folder in sorted((self.run_dir / "checkpoints").glob("step-????????")):
            if (folder / MANIFEST).exists():  # or it is just being deleted
                items.append((f"checkpoints/{folder.name}", _files(folder, MANIFEST)))
        for model in ("model", "best"):
            if (self.run_dir / model).exists():
                items.append((model, _files(self.run_dir / model, "provenance.json")))
        return items

    def _send(self) -> None:
        for name, files in self._items():
            try:
                stamp = _stamp(files)
                if self._sent.get(name) != stamp:
                    if not self._is_there(name, files):
                        self._put(name, files)
                    self._sent[name] = stamp
            except FileNotFoundError:
                if (self.run_dir / name).exists():
                    raise
                log.info("%s was deleted before it was sent", name)
        self._prune()

    def _put(self, name: str, files: list[Path]) -> None:
        *others, last = files
        if others:
            self._remove(self._far(last))  # what is overwritten must not pass for complete meanwhile
        for folder in {self._far(file).rpartition("/")[0]: None for file in files}:
            self._system.makedirs(folder, exist_ok=True)
        for file in files:
            far = self._far(file)
            size = file.stat().st_size
            self._system.put_file(str(file), far)
            if others and self._system.info(far)["size"] != size:
                raise OSError(f"{file.name} did not arrive whole")

    def _is_there(self, name: str, files: list[Path]) -> bool:
        """Whether an earlier process has sent this checkpoint or model: the file that completes it is the same."""
        return name not in RECORDS and self._read(self._far(files[-1])) == files[-1].read_bytes()

    def _prune(self) -> None:
        """Delete what is older than the newest ``keep`` complete checkpoints there, and what never became complete."""
        steps = self._steps()
        complete = [name for name in steps if self._read(f"{self._root}/checkpoints/{name}/{MANIFEST}")]
        for name in steps:
            if name not in complete[-self.keep :] and f"checkpoints/{name}" not in dict(self._items()):
                folder = f"{self._root}/checkpoints/{name}"
                self._remove(f"{folder}/{MANIFEST}")  # first: what is half deleted must not pass for complete
                with suppress(FileNotFoundError):  # a folder without a file is none in object storage
                    self._system.rm(folder, recursive=True)

    def _steps(self) -> list[str]:
        """Checkpoints there, oldest first, complete or not."""
        self._system.invalidate_cache()
        try:
            paths = self._system.ls(f"{self._root}/checkpoints", detail=False)
        except FileNotFoundError:
            return []
        names = sorted(str(path).rstrip("/").rpartition("/")[2] for path in paths)
        return [name for name in names if name.startswith("step-")]

    def _far(self, file: Path) -> str:
        return f"{self._root}/{file.relative_to(self.run_dir).as_posix()}"

    def _read(self, path: str) -> bytes | None:
        try:
            data = self._system.cat_file(path)
        except FileNotFoundError:
            return None
        assert isinstance(data, bytes)
        return data

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._system.rm_file(path)

    def fetch(self) -> None:
        """Bring the newest intact checkpoint and the records, if it is newer than what the run folder has.

        Raises ValueError when the storage does not answer and the run folder holds no checkpoint.
        """
        folders = sorted((self.run_dir / "checkpoints").glob("step-????????"))
        here = next((folder.name for folder in reversed(folders) if is_intact(folder)), "")
        began, wait = time.monotonic(), FIRST_WAIT_S
        while True:
            try:
                return self._fetch_newer_than(here)
            except Exception as error:  # each file system has exceptions of its own
                if here:
                    log.warning("%s cannot be read; going on from %s, which is here: %s", self.url, here, error)
                    return None
                if time.monotonic() - began > START_LIMIT_S:
                    raise ValueError(
                        f"loop.mirror: {self.url} cannot be read, so it is not known whether this run has begun: "
                        f"{type(error).__name__}: {error}. Mend the storage, or set loop.mirror to another place."
                    ) from error
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _fetch_newer_than(self, here: str) -> None:
        for name in reversed([name for name in self._steps() if name > here]):
            far, final = f"{self._root}/checkpoints/{name}", self.run_dir / "checkpoints" / name
            manifest = self._read(f"{far}/{MANIFEST}")
            if manifest is None:
                continue
            partial = final.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / MANIFEST).write_bytes(manifest)
            try:
                for file in json.loads(manifest)["sha256"]:
                    self._system.get_file(f"{far}/{Path(file).name}", str(partial / Path(file).name))
            except (FileNotFoundError, ValueError, KeyError):
                log.warning("%s is not complete", far)
            if not is_intact(partial):
                log.warning("checkpoint %s is damaged and is passed over", far)
                shutil.rmtree(partial)
                self._remove(f"{far}/{MANIFEST}")  # it is sent anew when the run is there again
                continue
            for record in RECORDS[1:]:  # the config is given anew
                data = self._read(f"{self._root}/{record}")
                if data is not None:
                    (self.run_dir / record).write_bytes(data)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            log.info("%s comes from %s", name, self.url)
            return


def _files(folder: Path, last: str) -> list[Path]:
    """All files of ``folder``, at any depth, the one named ``last`` at the end."""
    return sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path == folder / last, path)
    )


def _stamp(files: list[Path]) -> tuple[object, ...]:
    """Changes when one of ``files`` does; a file that is gone makes it another one."""
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()])

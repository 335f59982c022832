"""Growing files of JSON lines, and how far they have been read."""

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK_BYTES = 256


@dataclass(frozen=True)
class Position:
    """How far a file has been read. The mark tells whether what was read is still what stands there."""

    offset: int = 0
    mark: str = ""


def _mark(before: bytes) -> str:
    return hashlib.sha256(before).hexdigest()[:16] if before else ""


def read_lines(path: Path, position: Position, limit: int) -> tuple[list[str], Position]:
    """At most ``limit`` whole lines after ``position``, and the position after them.

    A last line without its newline is still being written and is left alone. A file that was rewritten below the
    position (training went back to an older checkpoint) is read again from its start.
    """
    if not path.exists():
        return [], Position()
    with path.open("rb") as file:
        start = max(0, position.offset - _MARK_BYTES)
        file.seek(start)
        if _mark(file.read(position.offset - start)) != position.mark:
            position = Position()
        file.seek(position.offset)
        lines = []
        while len(lines) < limit and (line := file.readline()).endswith(b"\n"):
            lines.append(line)
        offset = position.offset + sum(map(len, lines))
        start = max(0, offset - _MARK_BYTES)
        file.seek(start)
        return [line.decode("utf-8", "replace") for line in lines], Position(offset, _mark(file.read(offset - start)))


def append_line(path: Path, record: dict[str, Any], lock: threading.Lock) -> None:
    """Add one JSON line; it is with the operating system when this returns."""
    with lock, path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def replace_json(path: Path, data: dict[str, Any]) -> None:
    """Write a small JSON file that is never seen half written."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)

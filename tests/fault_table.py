"""Figures of the tests that break something: ``make faults`` gathers them for the table in ``ray_jobs/README.md``.

``python -m tests.fault_table FILE`` prints what ``PALATE_FAULTS=FILE python -m pytest ...`` has noted.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Figures:
    """What one attempt to break a run has shown."""

    fault: str
    survived: bool = False
    faults: int = 1
    """How often the run was broken."""
    lost_updates: int | None = None
    """Updates made twice, over all faults; None where that is no question."""
    seconds: float | None = None
    """From the fault to the first update that had not been made before; None where that is no question."""
    longest_wait: float | None = None
    """Seconds that the training thread stood still for it at a time, at most; None where that is no question."""
    promise: str = ""
    """What the test has checked, in a few words."""


@contextmanager
def attempt(fault: str, promise: str) -> Iterator[Figures]:
    """Around a test: notes whether it went through, with the figures that it fills in."""
    figures = Figures(fault, promise=promise)
    try:
        yield figures
        figures.survived = True
    finally:
        if path := os.environ.get("PALATE_FAULTS"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(json.dumps(asdict(figures)) + "\n")


def table(rows: list[Figures]) -> str:
    """The noted figures as Markdown, one line for each kind of fault."""
    head = ["Fault", "Runs", "Faults", "Survived", "Updates lost", "Seconds to recover", "Longest wait, s", "Checked"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for fault in dict.fromkeys(row.fault for row in rows):
        same = [row for row in rows if row.fault == fault]
        cells = [
            fault,
            len(same),
            sum(row.faults for row in same),
            sum(row.survived for row in same),
            spread([row.lost_updates for row in same]),
            spread([row.seconds for row in same]),
            spread([row.longest_wait for row in same]),
            same[0].promise,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float | None]) -> str:
    """The least and the most of what was measured."""
    measured = [value for value in values if value is not None]
    if not measured:
        return ""
    low, high = short(min(measured)), short(max(measured))
    return low if low == high else f"{low} to {high}"


def short(value: float) -> str:
    if value >= 1 or value == 0:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 0.01 else "below 0.01"


if __name__ == "__main__":
    print(table([Figures(**json.loads(line)) for line in Path(sys.argv[1]).read_text().splitlines()]))

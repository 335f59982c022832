"""palate status: how a training run stands, from its folder alone.

usage: palate status RUN [--html] [--json] [--stop]

RUN is the folder of a run. --json prints for programs. --html also writes run.html into the folder: one page with all
curves, that needs nothing else. --stop asks the run to end after its current update, with a checkpoint; the command
that started it goes on from there.
"""

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpo_core.stopping import ask_to_stop
from ray_jobs.record.run_page import write_page
from ray_jobs.record.run_status import RunStatus
from ray_jobs.settings.command import complain, show


def print_status(status: RunStatus, console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in status.facts().items():
        table.add_row(name, escape(value))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"--help", "-h"} & set(words):
        show(__doc__ or "")
        return 0 if words else 2
    options = {word for word in words if word.startswith("-")}
    folders = [word for word in words if not word.startswith("-")]
    if odd := sorted(options - {"--html", "--stop", "--json"}):
        complain(f"{odd[0]}: there is no such option; allowed: --html, --stop, --json")
        return 2
    if len(folders) != 1:
        complain(f"status takes the folder of one run, {len(folders)} were given")
        return 2
    try:
        status = RunStatus.read(folders[0])
    except ValueError as error:
        complain(str(error))
        return 2
    if "--stop" in options:
        ask_to_stop(status.folder)
        status = RunStatus.read(folders[0])
    if "--json" in options:
        show(json.dumps({"step": status.step, "total": status.total, "state": status.state} | status.facts(), indent=1))
    else:
        print_status(status, Console())
    if "--html" in options:
        show(f"page {write_page(status)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

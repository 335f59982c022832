"""What a run consumed, update by update, and the proof that it is what the data plan says.

Rank 0 appends a line to ``ledger.jsonl`` for every update: how many pairs, how many of them could not be read, and a
digest of (epoch, pair id) of them all. The digest is a sum, so it does not depend on how the pairs were shared out.
Since the order is a function of (seed, epoch), ids need not be stored: `check_ledger` derives them again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dpo_core.data.batches import PairBatch, Share, make_schedule
from dpo_core.data.plan import Plan
from dpo_core.data.section import DataSection
from dpo_core.metrics import read_complete_rows

DIGEST_BITS = 128


@dataclass(frozen=True, slots=True)
class Entry:
    """One update, counted from 1."""

    update: int
    pairs: int
    lost: int
    """Pairs that could not be read; why is in the quarantine."""
    digest: str

    def plus(self, other: "Entry") -> "Entry":
        total = (int(self.digest, 16) + int(other.digest, 16)) % (1 << DIGEST_BITS)
        return Entry(self.update, self.pairs + other.pairs, self.lost + other.lost, _hex(total))


@dataclass(frozen=True, slots=True)
class Proof:
    """What a checked ledger shows."""

    updates: int
    pairs: int
    lost: int
    whole_epochs: int
    """Epochs of which every usable row was visited exactly once."""


def digest_of(visits: Iterable[tuple[int, str]]) -> str:
    """Of (epoch, pair id), whatever their order; a pair that comes twice counts twice."""
    names = (hashlib.blake2b(f"{epoch}\x1f{pair_id}".encode(), digest_size=16).digest() for epoch, pair_id in visits)
    return _hex(sum(int.from_bytes(name, "big") for name in names) % (1 << DIGEST_BITS))


class Ledger:
    """What one rank has consumed since it was last asked."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def note(self, update: int, batches: Sequence[PairBatch]) -> None:
        visits = [visit for batch in batches for visit in zip(batch.epochs, batch.pair_ids, strict=True)]
        lost = sum(len(batch.quarantined) for batch in batches)
        self._entries.append(Entry(update, len(visits), lost, digest_of(visits)))

    def take(self) -> list[Entry]:
        entries, self._entries = self._entries, []
        return entries


class LedgerFile:
    """``ledger.jsonl``. A resumed run repeats updates that were written already; they are compared, not written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {entry.update: entry for entry in read_ledger(path)}
        if path.exists():  # a line cut short by a crash is written again, not glued to the next one
            with path.open("r+b") as file:
                file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def append(self, ranks: Sequence[Sequence[Entry]]) -> None:
        """Write down the same updates of all ranks. Raises ValueError where an update consumes other pairs than before
        it was repeated."""
        lines = []
        for shares in zip(*ranks, strict=True):
            entry = shares[0]
            for share in shares[1:]:
                entry = entry.plus(share)
            known = self._known.setdefault(entry.update, entry)
            if known is entry:
                lines.append(json.dumps(asdict(entry)) + "\n")
            elif known != entry:
                raise ValueError(f"{self._path}: update {entry.update} now consumes other pairs than before the stop")
        with self._path.open("a") as file:
            file.writelines(lines)


def read_ledger(path: Path) -> list[Entry]:
    """All complete lines of a ledger."""
    return [Entry(**row) for row in read_complete_rows(path)]


def planned_visits(plan: Plan, section: DataSection, share: Share) -> Iterator[list[tuple[int, str]]]:
    """(epoch, pair id) of every pair of each global batch, endless; what a run with any number of workers consumes."""
    alone = Share(share.seed, share.global_batch_size, share.worker_batch_size)
    schedule = make_schedule(plan, section, alone)
    step = 0
    while True:
        yield [(slot.epoch, slot.pair_id) for slot in schedule.slots(step, 0, 1)]
        step += 1


def check_ledger(entries: Sequence[Entry], plan: Plan, section: DataSection, share: Share) -> Proof:
    """Derive anew what the run had to consume and compare. Raises ValueError for the first update that differs, for
    updates that are missing, and if a row was visited twice in an epoch."""
    if [entry.update for entry in entries] != list(range(1, len(entries) + 1)):
        raise ValueError(f"the ledger does not hold updates 1 to {len(entries)}, each once")
    visited: Counter[tuple[int, str]] = Counter()
    for entry, visits in zip(entries, planned_visits(plan, section, share), strict=False):
        if (entry.pairs, entry.digest) != (len(visits), digest_of(visits)):
            raise ValueError(f"update {entry.update} consumed other pairs than the plan says")
        visited.update(visits)
    if twice := [visit for visit, times in visited.items() if times > 1]:
        raise ValueError(f"pair {twice[0][1]} was visited {visited[twice[0]]} times in epoch {twice[0][0]}")
    rows = Counter(epoch for epoch, _ in visited)
    return Proof(
        updates=len(entries),
        pairs=sum(entry.pairs for entry in entries),
        lost=sum(entry.lost for entry in entries),
        whole_epochs=sum(count == plan.rows for count in rows.values()),
    )


def _hex(value: int) -> str:
    return f"{value:0{DIGEST_BITS // 4}x}"

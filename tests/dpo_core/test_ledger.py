import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data import files
from dpo_core.data.batches import DataSection, PairBatch, Share, make_schedule, step_batches
from dpo_core.data.plan import Plan
from dpo_core.ledger import Ledger, LedgerFile, check_ledger, digest_of, read_ledger
from tests.tiny_data import make_pairs
from tests.train_runs import make_config, run, run_ranks


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 46, shards=3, group=4)


@pytest.fixture(scope="module")
def plan(pairs) -> Plan:
    return Plan.build(section_of(pairs))


def section_of(pairs: Path, **fields: Any) -> DataSection:
    return DataSection(paths=[str(pairs)], resolution=16, min_side=16, **fields)


def named(schedule: Any, step: int, rank: int, world_size: int) -> PairBatch:
    """A batch of which only the names are there."""
    slots = schedule.slots(step, rank, world_size)
    nothing = [""] * len(slots)
    return PairBatch(
        [slot.pair_id for slot in slots], [slot.epoch for slot in slots], torch.ones(len(slots)), nothing, nothing
    )


@settings(max_examples=40, deadline=None)
@given(
    lives=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 14)), min_size=1, max_size=6),
    items=st.integers(1, 4),
    lanes=st.integers(5, 8),
    window=st.integers(1, 3),
    checkpoint_every=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_kills_and_changed_worker_counts_leave_a_ledger_that_visits_each_row_once_per_epoch(
    plan, tmp_path_factory, lives, items, lanes, window, checkpoint_every, seed
):
    section = DataSection(paths=["-"], lanes=lanes, window=window)
    share = Share(seed, global_batch_size=lanes * items, worker_batch_size=3)
    path, committed = tmp_path_factory.mktemp("run") / "ledger.jsonl", 0
    for world_size, updates in lives:  # each life goes on from the last checkpoint and is killed some updates later
        schedule = make_schedule(plan, section, share)
        file, ledgers = LedgerFile(path), [Ledger() for _ in range(world_size)]
        for step in range(committed, committed + updates):
            for rank, ledger in enumerate(ledgers):
                ledger.note(step + 1, [named(schedule, step, rank, world_size)])
            file.append([ledger.take() for ledger in ledgers])
            if (step + 1) % checkpoint_every == 0:
                committed = step + 1
    entries = read_ledger(path)
    proof = check_ledger(entries, plan, section, share)
    assert proof.pairs == len(entries) * share.global_batch_size
    longest_lane = -(-plan.rows // lanes)
    assert proof.whole_epochs >= len(entries) * items // longest_lane


def test_a_run_stopped_and_shared_out_leaves_the_ledger_of_one_that_was_neither(tiny_sd, pairs, plan, tmp_path):
    loop = {"max_steps": 6, "global_batch_size": 8, "worker_batch_size": 3, "log_every": 2, "checkpoint_every": 2}
    whole = make_config(tiny_sd, pairs, loop=loop)
    run(whole, tmp_path / "whole")
    half = whole.model_copy(update={"loop": whole.loop.model_copy(update={"max_steps": 4})})
    (tmp_path / "parts").mkdir()
    run_ranks(half, tmp_path / "parts", 2)
    run(whole, tmp_path / "parts")
    files = [tmp_path / name / "ledger.jsonl" for name in ("whole", "parts")]
    assert files[0].read_text() == files[1].read_text()
    entries = read_ledger(files[0])
    proof = check_ledger(entries, plan, whole.data, Share(whole.loop.seed, 8, 3))
    assert (proof.updates, proof.pairs, proof.lost, proof.whole_epochs) == (6, 48, 0, 1)


def ledger_of(plan: Plan, section: DataSection, share: Share, path: Path, updates: int) -> Path:
    ledger, file = Ledger(), LedgerFile(path)
    schedule = make_schedule(plan, section, share)
    for step in range(updates):
        ledger.note(step + 1, [named(schedule, step, 0, 1)])
    file.append([ledger.take()])
    return path


def test_a_ledger_is_refused_when_it_is_not_what_the_plan_says(plan, pairs, tmp_path):
    section, share = section_of(pairs), Share(1, 8, 8)
    entries = read_ledger(ledger_of(plan, section, share, tmp_path / "ledger.jsonl", 12))
    assert check_ledger(entries, plan, section, share).whole_epochs == 2
    with pytest.raises(ValueError, match="update 1 consumed other pairs"):
        check_ledger(entries, plan, section, replace(share, seed=2))
    with pytest.raises(ValueError, match="does not hold updates 1 to 11"):
        check_ledger(entries[:4] + entries[5:], plan, section, share)
    with pytest.raises(ValueError, match="update 5 consumed other pairs"):
        check_ledger([*entries[:4], replace(entries[3], update=5), *entries[5:]], plan, section, share)
    with pytest.raises(ValueError, match="update 3 consumed other pairs"):
        check_ledger([*entries[:2], replace(entries[2], pairs=7), *entries[3:]], plan, section, share)


def test_an_update_that_is_repeated_with_other_pairs_stops_the_run(plan, pairs, tmp_path):
    section, share = section_of(pairs), Share(1, 8, 8)
    path = ledger_of(plan, section, share, tmp_path / "ledger.jsonl", 3)
    before = path.read_text()
    assert ledger_of(plan, section, share, path, 3).read_text() == before
    with pytest.raises(ValueError, match="update 1 now consumes other pairs"):
        ledger_of(plan, section, replace(share, seed=2), path, 3)


def test_a_line_cut_short_by_a_crash_is_written_again(plan, pairs, tmp_path):
    section, share = section_of(pairs), Share(1, 8, 8)
    path = ledger_of(plan, section, share, tmp_path / "ledger.jsonl", 3)
    before = path.read_text()
    path.write_text(before[:-20])
    assert ledger_of(plan, section, share, path, 3).read_text() == before


def test_the_digest_knows_epochs_and_repetitions_but_no_order():
    assert digest_of([(0, "a"), (1, "b")]) == digest_of([(1, "b"), (0, "a")])
    others = [[(0, "a")], [(0, "a"), (0, "a")], [(1, "a")], [(0, "b")], [(0, "a"), (0, "b")], [(0, "ab")], []]
    assert len({digest_of(visits) for visits in others}) == len(others)


def test_lost_pairs_are_counted_where_they_were_consumed(tiny_sd, tmp_path):
    hostile = Path(__file__).parents[1] / "assets" / "hostile.parquet"
    config = make_config(
        tiny_sd,
        hostile,
        data={"max_quarantined_share": 0.5, "min_side": 32},
        loop={"max_steps": 5, "log_every": 5, "checkpoint_every": 5},
    )
    run(config, tmp_path / "run")
    entries = read_ledger(tmp_path / "run" / "ledger.jsonl")
    proof = check_ledger(entries, Plan.build(config.data), config.data, Share(0, 8, 8))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert proof.lost > 5
    assert sum(row["train/pairs"] for row in rows) == proof.pairs - proof.lost == 40 - proof.lost


@pytest.mark.parametrize("start", [0, 3, 7, 10])
def test_a_resumed_run_reads_no_row_group_that_it_has_finished(plan, pairs, monkeypatch, start):
    section, share, stop = section_of(pairs, lanes=2, window=1), Share(4, 4, 4), 11
    schedule = make_schedule(plan, section, share)
    ahead = {slot.group for step in range(start, stop) for slot in schedule.slots(step, 0, 1)}
    finished = {slot.group for step in range(start) for slot in schedule.slots(step, 0, 1)} - ahead
    read: list[tuple[str, int]] = []
    original = files.read_row_group

    def counting(parquet: Any, file: str, row_group: int, columns: Any) -> Any:
        read.append((file, row_group))
        return original(parquet, file, row_group, columns)

    monkeypatch.setattr(files, "read_row_group", counting)
    stream = step_batches(plan, section, share, start)
    for _ in range(start, stop):
        next(stream)
    assert sorted(read) == sorted((group.file, group.index) for group in ahead)
    assert bool(finished) == (start > 0)

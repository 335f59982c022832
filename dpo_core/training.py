"""The training loop, read from top to bottom."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import NoReturn

from dpo_core.checkpoint import TrainingState, load_agreed
from dpo_core.context import RunContext
from dpo_core.data.batches import PairBatch
from dpo_core.data.encoder import check_encoder
from dpo_core.data.labelled import LABELLED_BY, labelled_by
from dpo_core.data.plan import Plan
from dpo_core.data.quarantine import Quarantine, Quarantined, counts_by_reason, read_quarantine, told_counts
from dpo_core.data.texts import load_family
from dpo_core.diagnostics import ChosenErrorAlarm
from dpo_core.export import export_model
from dpo_core.families import DTYPES, weights_hash
from dpo_core.learner import Learner
from dpo_core.ledger import Ledger, LedgerFile
from dpo_core.metrics import MetricsFile, RunningMeans, device_memory
from dpo_core.mirror import mirrored
from dpo_core.policy import Policy
from dpo_core.recipe import TrainSection
from dpo_core.requirements import check_timesteps
from dpo_core.resume import refuse_changed_maths, run_record
from dpo_core.saving import CheckpointWriter, checkpoint_writer
from dpo_core.sharding import Sharding
from dpo_core.spikes import SpikeFile
from dpo_core.update import Update

log = logging.getLogger(__name__)


Batches = Callable[[int], Iterator[list[PairBatch]]]
"""From an update number: the micro-batches of this rank for that update and each one after it."""


def train(config: TrainSection, context: RunContext, plan: Plan, batches: Batches, *, name: str) -> bool:
    """Train until ``loop.max_steps``, going on from the newest checkpoint in ``context.run_dir`` if there is one.

    ``plan`` says which pairs there are, ``batches`` delivers them. Leaves ``metrics.jsonl``, ``quarantine.parquet``,
    ``ledger.jsonl``, ``checkpoints/`` and the exported ``model/`` in the run folder; False without the model, when the
    context asked the run to stop before its end. Raises ValueError when the checkpoint was made with a config or data
    that would change the mathematics, when too many pairs cannot be read, when gradients stay infinite, and when
    ``loop.mirror`` cannot be read and there is nothing to go on from.
    """
    keep, shared_out = config.loop.keep_checkpoints, config.policy.sharding == "full" and context.world_size > 1
    with (
        mirrored(config.loop.mirror, context, name, keep) as mirror,
        checkpoint_writer(
            context,
            keep,
            then=mirror.notify if mirror is not None else lambda: None,
            background=config.loop.background_checkpoints,
            copies=not shared_out,  # what is put together of parts is a copy already
        ) as writer,
    ):
        return train_on(config, context, plan, batches, name, writer)


def train_on(
    config: TrainSection,
    context: RunContext,
    plan: Plan,
    batches: Batches,
    name: str,
    writer: CheckpointWriter | None,
) -> bool:
    """`train` on what is in the run folder; rank 0 has a ``writer`` of checkpoints."""
    loop, objective = config.loop, config.objective
    record, labelled = run_record(config, plan), labelled_by(config.data.paths)
    check_encoder(plan, config.family)
    family = load_family(
        config.family, context.device, loop.precision, plan, config.data, encodes=config.policy.text_encoder
    )
    check_timesteps(config.timesteps, family)
    base_hash = weights_hash([family.denoiser]) if context.rank == 0 else ""
    shared_out = config.policy.sharding == "full" and context.world_size > 1
    policy = Policy(
        config.policy,
        family,
        context.device,
        loop.precision,
        loop.seed,
        objective.needs_reference,
        Sharding(context) if shared_out else None,
    )
    learner = Learner(config, policy, context)
    quarantine = Quarantine(plan.quarantined, limit=config.data.max_quarantined_share)
    quarantine_file = context.run_dir / "quarantine.parquet"

    start = 0
    saved = load_agreed(context.run_dir / "checkpoints", context)
    if saved is not None:
        refuse_changed_maths(saved.config, record)
        policy.load_state(saved.weights)
        learner.load_state(saved.optim["learner"])
        planned = {item.pair_id for item in plan.quarantined}
        found = [item for item in read_quarantine(quarantine_file) if item.pair_id not in planned]
        quarantine.add(found, rows_read=saved.step * loop.global_batch_size)
        start = saved.step
        log.info("resumed at update %d of %d", start, loop.max_steps)

    means, file = RunningMeans(), MetricsFile(context.run_dir / "metrics.jsonl") if context.rank == 0 else None
    if saved is not None and context.rank == 0:
        means.load_state(saved.optim["window"], context.device)
    update = Update(config, policy, context, learner.scaler, means)
    alarm = ChosenErrorAlarm(loop.chosen_error_alarm)
    for row in file.rows_until(start) if file is not None else ():
        alarm.check({name.removeprefix("train/"): value for name, value in row.items()})
    unreadable: list[Quarantined] = []
    ledger, ledger_file = Ledger(), LedgerFile(context.run_dir / "ledger.jsonl") if context.rank == 0 else None
    judged = start
    stream = batches(start) if start < loop.max_steps else iter(())
    for step in range(start, loop.max_steps):
        micro_batches = next(stream)
        update.accumulate(micro_batches)
        unreadable += [item for batch in micro_batches for item in batch.quarantined]
        ledger.note(step + 1, micro_batches)
        lr = learner.schedule.get_last_lr()[0]  # of this update, before it is done
        norm = learner.update()

        done = step + 1
        if learner.spiked:
            note_spike(done, norm.item(), micro_batches, learner, context)
        if learner.skipped_in_a_row > loop.max_skipped_in_a_row:
            give_up(done, micro_batches, learner, context)
        last = done == loop.max_steps
        request = context.request()
        if done % loop.log_every == 0 or last or request != "nothing":
            told = context.gather((unreadable, ledger.take()))
            found = [item for part, _ in told for item in part]
            quarantine.add(found, rows_read=(done - judged) * loop.global_batch_size)
            unreadable, judged = [], done
            if ledger_file is not None:
                quarantine.write(quarantine_file)
                ledger_file.append([entries for _, entries in told])
        if done % loop.log_every == 0 or last:
            window = means.take(context)
            window["chosen_error_rises"] = float(alarm.check(window))
            if alarm.just_raised:
                log.warning("update %d: %s", done, alarm.message)
            metrics: dict[str, float] = {f"train/{key}": value for key, value in window.items()}
            metrics |= {"train/lr": float(lr), "train/grad_norm": norm.item()}
            metrics |= {f"train/{key}": value for key, value in device_memory(context.device).items()}
            metrics |= {"train/skipped_updates": learner.skipped, "data/quarantined": len(quarantine.records)}
            if learner.spikes is not None:
                metrics["train/spikes"] = learner.spikes.count
            metrics |= {f"data/quarantined/{why}": n for why, n in counts_by_reason(quarantine.records).items()}
            if file is not None:
                file.append(done, metrics)
            context.report({"step": done} | metrics)
        if done % loop.checkpoint_every == 0 or last or request != "nothing":
            parts = {"learner": learner.state(), "window": means.state(context)}
            state = TrainingState(done, policy.state(), parts, record)
            if writer is not None:
                writer.save(state, now=last or request != "nothing")
        elif writer is not None:
            writer.check()
        if request == "stop" and not last:
            log.warning("asked to stop: checkpoint after update %d of %d", done, loop.max_steps)
            return False

    with learner.averaged(), policy.whole_weights():
        if context.rank == 0:
            tell_left_out(quarantine, plan)
            tell_skipped(learner, loop.max_steps)
            facts = {
                "steps": loop.max_steps,
                "base_weights_sha256": base_hash,
                "data_sha256": plan.fingerprint,
                "pairs": plan.rows,
                "ties_left_out": plan.ties,
                "quarantined": counts_by_reason(quarantine.records),
                LABELLED_BY: labelled,
            }
            dtype = DTYPES[loop.export_dtype]
            export_model(context.run_dir / "model", family, name=name, config=record, facts=facts, dtype=dtype)
    return True


def tell_left_out(quarantine: Quarantine, plan: Plan) -> None:
    reasons = counts_by_reason(quarantine.records)
    if reasons:
        log.warning("%d of %d rows could not be used: %s", len(quarantine.records), plan.total, told_counts(reasons))


def tell_skipped(learner: Learner, steps: int) -> None:
    if learner.skipped:
        why = "not finite or a spike" if learner.spikes is not None else "not finite"
        nothing = "; the model is the one that the run began with" if learner.skipped == steps else ""
        log.warning("%d of %d updates left out, their gradient was %s%s", learner.skipped, steps, why, nothing)


def pairs_of_all_ranks(micro_batches: list[PairBatch], context: RunContext) -> list[str]:
    """The ids of the pairs of one update."""
    return [pair for part in context.gather([i for batch in micro_batches for i in batch.pair_ids]) for pair in part]


def note_spike(step: int, norm: float, micro_batches: list[PairBatch], learner: Learner, context: RunContext) -> None:
    """Write down which pairs were in an update that was left out."""
    ids = pairs_of_all_ranks(micro_batches, context)
    assert learner.spikes is not None
    median = learner.spikes.median
    assert median is not None
    if context.rank == 0:
        file = context.run_dir / "spikes.jsonl"
        SpikeFile(file).append(step, norm, median, ids)
        log.warning(
            "update %d left out: gradient norm %.3g, median before it %.3g; pairs in %s", step, norm, median, file
        )


def give_up(step: int, micro_batches: list[PairBatch], learner: Learner, context: RunContext) -> NoReturn:
    """Write down which pairs were in the last update and end the run: it no longer learns anything."""
    ids = pairs_of_all_ranks(micro_batches, context)
    file = context.run_dir / "not_finite.json"
    if context.rank == 0:
        file.write_text(json.dumps({"step": step, "pair_ids": ids}, indent=1) + "\n")
    which = "not finite or a spike" if learner.spikes is not None else "not finite"
    raise ValueError(
        f"the gradient was {which} in {learner.skipped_in_a_row} updates in a row, up to update {step}; the pairs of "
        f"the last one are in {file}. Lower optim.lr, take another loop.precision, or look at those pairs."
    )

"""Weights shared out among ranks that are real processes: the same run as in one, in a part of the memory of each."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor

from dpo_core.context import LocalContext, RunContext
from dpo_core.data.batches import Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.families.ip_adapter import ADAPTER_FILE
from dpo_core.learner import Learner
from dpo_core.metrics import RunningMeans
from dpo_core.policy import Policy
from dpo_core.recipe import TrainSection
from dpo_core.sharding import Sharding
from dpo_core.step import prepare_denoising
from dpo_core.update import Update
from tests.tiny_families import TINY
from tests.tiny_ip_adapter import make_tiny_ip_adapter
from tests.train_processes import ProcessContext, in_processes, run_processes
from tests.train_runs import Ranks, ThreadContext, close, make_config, rows, run, same

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-recomputed": {"method": "full", "gradient_checkpointing": True},
    "lora": {"method": "lora"},
    "lora-text": {"method": "lora", "text_encoder": True},
}
ALWAYS = ("full", "lora")


def config_of(model: Path, pairs: Path, policy: str, sharding: str = "full", **sections: Any) -> TrainSection:
    given: dict[str, Any] = {
        "policy": METHODS[policy] | {"sharding": sharding},
        "optim": {"lr": 1e-3, "eps": 1e-3, "ema_decay": 0.9},
        "loop": {"max_steps": 3, "worker_batch_size": 2},
    }
    for name, values in sections.items():
        given[name] = given.get(name, {}) | values
    return make_config(model, pairs, **given)


def check_same_run(one: Path, other: Path, rel: float = 1e-3) -> None:
    for row, again in zip(rows(one), rows(other), strict=True):
        assert row["train/loss"] == pytest.approx(again["train/loss"], rel=rel, abs=1e-4)
        assert row["train/grad_norm"] == pytest.approx(again["train/grad_norm"], rel=10 * rel)


@pytest.mark.parametrize(
    "policy", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_two_ranks_that_share_the_weights_train_and_export_what_one_process_does(tiny_sd, tiny_pairs, tmp_path, policy):
    alone = run(config_of(tiny_sd, tiny_pairs, policy, "none"), tmp_path / "alone")
    shared = run_processes(config_of(tiny_sd, tiny_pairs, policy), tmp_path / "shared", 2)
    check_same_run(tmp_path / "alone", tmp_path / "shared")
    assert {name: tensor.shape for name, tensor in alone.items()} == {n: t.shape for n, t in shared.items()}
    assert close(alone, shared, atol=1e-5) > 0.999
    files = list((tmp_path / "alone" / "model").rglob("*.safetensors"))
    assert files
    for file in files:
        mine, theirs = load_file(file), load_file(tmp_path / "shared" / file.relative_to(tmp_path / "alone"))
        assert close(mine, theirs, atol=1e-5) > 0.999, file


@pytest.mark.slow
@pytest.mark.parametrize("policy", ALWAYS)
@pytest.mark.parametrize("family", [name for name in TINY if "-" not in name])
def test_every_family_can_be_shared_out_among_three_ranks_of_unequal_shares(tiny_pairs, tmp_path, family, policy):
    model = TINY[family](tmp_path / "tiny")
    alone = run(config_of(model, tiny_pairs, policy, "none", family={"kind": family}), tmp_path / "alone")
    shared = run_processes(config_of(model, tiny_pairs, policy, family={"kind": family}), tmp_path / "shared", 3)
    check_same_run(tmp_path / "alone", tmp_path / "shared")
    assert close(alone, shared, atol=1e-4) > 0.999


@pytest.mark.slow
def test_an_ip_adapter_in_a_network_that_is_shared_out_is_trained_and_exported(tiny_sd, tiny_pairs, tmp_path):
    base = make_config(tiny_sd, tiny_pairs).family.load(torch.device("cpu"), "fp32").denoiser
    adapter, encoder = make_tiny_ip_adapter(tmp_path, base)
    prompt = {"model": str(adapter), "image_encoder": str(encoder), "resampler": True}

    def config(sharding: str) -> TrainSection:
        policy = {"method": "ip_adapter", "ip_adapter": prompt, "sharding": sharding}
        loop = {"max_steps": 3, "worker_batch_size": 2}
        return make_config(
            tiny_sd, tiny_pairs, policy=policy, loop=loop, data={"prompt_image": True}, optim={"eps": 1e-3}
        )

    alone = run(config("none"), tmp_path / "alone")
    shared = run_processes(config("full"), tmp_path / "shared", 2)
    check_same_run(tmp_path / "alone", tmp_path / "shared")
    assert close(alone, shared, atol=1e-5) > 0.999
    exported = [load_file(tmp_path / name / "model" / ADAPTER_FILE) for name in ("alone", "shared")]
    assert close(*exported, atol=1e-5) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("policy", ALWAYS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_that_of_one_process(tiny_sd, tiny_pairs, tmp_path, policy, precision):
    # A small beta and small steps: what half precision rounds otherwise would be multiplied by beta.
    given: Any = {"loop": {"precision": precision, "max_steps": 4}, "optim": {"lr": 1e-5}, "objective": {"beta": 2.0}}
    run(config_of(tiny_sd, tiny_pairs, policy, "none", **given), tmp_path / "alone")
    run_processes(config_of(tiny_sd, tiny_pairs, policy, **given), tmp_path / "shared", 2)
    check_same_run(tmp_path / "alone", tmp_path / "shared", rel=0.02)
    assert rows(tmp_path / "shared")[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    skipped = [[row["train/skipped_updates"] for row in rows(tmp_path / name)] for name in ("alone", "shared")]
    assert skipped[0] == skipped[1]


@pytest.mark.parametrize("policy", ALWAYS)
def test_a_network_that_is_shared_out_predicts_the_bits_of_a_whole_one_in_bf16(tiny_sd, tiny_pairs, tmp_path, policy):
    # A U-Net is cut in contiguous order of memory, where convolutions round otherwise than in channels-last; nothing
    # else differs forwards. Backwards the hooks of FSDP change the order in which gradients of activations are added.
    def predictions(sharding: str, context: RunContext) -> list[torch.Tensor]:
        config = config_of(tiny_sd, tiny_pairs, policy, sharding, loop={"precision": "bf16"})
        family = config.family.load(context.device, "bf16")
        family.denoiser.to(memory_format=torch.contiguous_format)
        parts = Policy(
            config.policy, family, context.device, "bf16", 0, True, Sharding(context) if sharding == "full" else None
        )
        batch = next(step_batches(Plan.build(config.data), config.data, Share(0, 4, 4)))[0]
        asked = prepare_denoising(parts, config.objective, batch, 0)
        with torch.no_grad():
            start = parts.predict(asked.noisy, asked.timesteps, asked.conditioning)
            for parameter in parts.parameters():
                parameter.add_(1e-3)
            after = parts.predict(asked.noisy, asked.timesteps, asked.conditioning)
        reference = parts.predict_reference(asked.noisy, asked.timesteps, asked.reference_conditioning)
        return [start, after, reference]

    whole = predictions("none", LocalContext(tmp_path, "cpu"))
    assert torch.equal(whole[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    for shared in in_processes(tmp_path / "shared", 2, lambda context: predictions("full", context)):
        assert all(map(torch.equal, whole, shared))


def test_a_run_may_change_between_shared_and_whole_weights_whenever_it_goes_on(tiny_sd, tiny_pairs, tmp_path):
    alone = run(config_of(tiny_sd, tiny_pairs, "full", "none"), tmp_path / "alone")
    run(config_of(tiny_sd, tiny_pairs, "full", "none", loop={"max_steps": 1}), tmp_path / "mixed")
    run_processes(config_of(tiny_sd, tiny_pairs, "full", loop={"max_steps": 2}), tmp_path / "mixed", 2)
    mixed = run(config_of(tiny_sd, tiny_pairs, "full", "none"), tmp_path / "mixed")
    assert close(alone, mixed, atol=1e-5) > 0.999
    check_same_run(tmp_path / "alone", tmp_path / "mixed")


@pytest.mark.slow
def test_a_shared_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tiny_sd, tiny_pairs, tmp_path):
    straight = run_processes(config_of(tiny_sd, tiny_pairs, "full"), tmp_path / "straight", 2)
    run_processes(config_of(tiny_sd, tiny_pairs, "full", loop={"max_steps": 1}), tmp_path / "stopped", 2)
    assert same(straight, run_processes(config_of(tiny_sd, tiny_pairs, "full"), tmp_path / "stopped", 2))
    assert rows(tmp_path / "straight") == rows(tmp_path / "stopped")


def prepared(config: TrainSection, context: RunContext) -> tuple[Policy, Learner, Update]:
    family, loop = config.family.load(context.device, config.loop.precision), config.loop
    sharding = Sharding(context) if config.policy.sharding == "full" else None
    policy = Policy(config.policy, family, context.device, loop.precision, loop.seed, True, sharding)
    learner = Learner(config, policy, context)
    return policy, learner, Update(config, policy, context, learner.scaler, RunningMeans())


def bytes_held(policy: Policy, learner: Learner) -> int:
    """Bytes of policy, reference, average and moments that stay on a rank between updates."""
    networks = [network for network in (policy.model, policy.frozen) if network is not None]
    weights = [p.to_local() if isinstance(p, DTensor) else p for network in networks for p in network.parameters()]
    moments = [tensor for values in learner.optimizer.state.values() for tensor in values.values()]
    average = [] if learner.ema is None else list(learner.ema.average.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in [*weights, *moments, *average])


@pytest.mark.parametrize("policy", ALWAYS)
def test_two_ranks_hold_half_the_weights_and_optimiser_state_each(tiny_sd, tiny_pairs, tmp_path, policy):
    def held(sharding: str, world_size: int) -> list[int]:
        config = config_of(tiny_sd, tiny_pairs, policy, sharding)

        def work(context: ProcessContext) -> int:
            parts, learner, update = prepared(config, context)
            plan = Plan.build(config.data)
            update.accumulate(next(step_batches(plan, config.data, config.loop.share(context))))
            learner.update()
            return bytes_held(parts, learner)

        return in_processes(tmp_path / sharding, world_size, work)

    whole, parts = held("none", 1)[0], held("full", 2)
    assert parts == pytest.approx([whole / 2, whole / 2], rel=1e-3)


@pytest.mark.parametrize(("policy", "per_micro_batch"), [("lora", False), ("full", True)])
def test_adapters_are_reduced_once_an_update_however_many_micro_batches_there_are(
    tiny_sd, tiny_pairs, tmp_path, policy, per_micro_batch
):
    reduce: Any = _fsdp_param_group.foreach_reduce

    def work(context: ProcessContext) -> list[int]:
        counts = []
        for worker_batch_size in (4, 1):
            config = config_of(tiny_sd, tiny_pairs, policy, loop={"worker_batch_size": worker_batch_size})
            _, _, update = prepared(config, context)
            batches = next(step_batches(Plan.build(config.data), config.data, config.loop.share(context)))
            with patch.object(_fsdp_param_group, "foreach_reduce", wraps=reduce) as reduced:
                update.accumulate(batches)
            counts.append(reduced.call_count)
        return counts

    for once, four_times in in_processes(tmp_path, 2, work):
        assert once > 0
        assert four_times == (4 * once if per_micro_batch else once)


def test_an_overflow_on_one_rank_is_skipped_by_the_scalers_of_all(tiny_sd, tiny_pairs, tmp_path):
    config = config_of(tiny_sd, tiny_pairs, "lora", loop={"precision": "fp16"})

    def work(context: ProcessContext) -> tuple[list[float], int, bool]:
        policy, learner, _ = prepared(config, context)
        before = [p.detach().clone() for p in policy.parameters()]
        scales = [learner.scaler.get_scale()]
        stayed = False
        for overflows in (True, False):
            learner.scaler.scale(torch.zeros(()))
            for parameter in policy.parameters():
                parameter.grad = torch.full_like(parameter, 1.0)
            if overflows and context.rank == 1:
                gradient = policy.parameters()[0].grad
                assert gradient is not None
                gradient[0, 0] = torch.inf
            learner.update()
            scales.append(learner.scaler.get_scale())
            if overflows:
                stayed = all(torch.equal(*two) for two in zip(before, policy.parameters(), strict=True))
        return scales, learner.skipped, stayed

    one, other = in_processes(tmp_path, 2, work)
    assert one == other == ([65536.0, 32768.0, 32768.0], 1, True)


def test_one_process_has_nothing_to_share_out_and_trains_as_it_would_without(tiny_sd, tiny_pairs, tmp_path):
    config = config_of(tiny_sd, tiny_pairs, "lora", loop={"max_steps": 1})
    alone = run(config_of(tiny_sd, tiny_pairs, "lora", "none", loop={"max_steps": 1}), tmp_path / "none")
    assert same(alone, run(config, tmp_path / "full"))


def test_ranks_without_a_process_group_are_told_what_they_need(tmp_path):
    with pytest.raises(ValueError, match=r"needs a torch process group of all 2 ranks.*sharding to none"):
        Sharding(ThreadContext(Ranks(2), 0, tmp_path))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"policy": {"sharding": "full", "method": "lora", "dora": True}}, "dora needs whole weights"),
        ({"policy": {"sharding": "full"}, "optim": {"name": "prodigy", "lr": 1.0}}, "optim.name=adamw instead of"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(sections, told):
    with pytest.raises(ValueError, match=told):
        TrainSection.model_validate(sections)

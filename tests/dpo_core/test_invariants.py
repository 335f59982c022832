"""The invariants of training, over every family and every objective."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dpo_core.data.batches import Share, step_batches
from dpo_core.data.plan import Plan
from dpo_core.families import Precision
from dpo_core.objectives import AnyObjective
from dpo_core.objectives.base import Objective, PairErrors
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import pair_errors, prepare_denoising
from tests.tiny_data import make_pairs
from tests.tiny_families import TINY
from tests.train_runs import close, make_config, rows, run, run_ranks, same

OBJECTIVES: dict[str, type[Objective]] = {
    section.model_fields["kind"].default: section for section in get_args(get_args(AnyObjective)[0])
}
FAMILIES = sorted(name for name in TINY if "-" not in name)
CPU = torch.device("cpu")


def data_for(kind: str) -> dict[str, Any]:
    """What ``data`` must say for this objective."""
    return {"dcpo": {"captions": "per_image"}, "sudo": {"rejected": "other"}, "patchdpo": {"quality": True}}.get(
        kind, {}
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: TINY[family](folder / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"), 24, grid=8)


class EveryMap(Objective):
    """Asks for all there is, so that one forward pass serves all objectives."""

    needs_reference = True
    needs_rejected = True
    needs_shift = True
    needs_quality = True


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_equal_to_its_reference_has_no_margin_under_any_objective(
    models, pairs, family: str, method: str, precision: Precision
):
    config = make_config(models[family], pairs, family={"kind": family}, data={"quality": True})
    loaded = config.family.load(CPU, precision)
    policy = Policy(PolicySection.model_validate({"method": method}), loaded, CPU, precision, 0, True)
    batch = next(step_batches(Plan.build(config.data), config.data, Share(0, 8, 8)))[0]
    with torch.no_grad():
        errors = pair_errors(policy, EveryMap(), prepare_denoising(policy, EveryMap(), batch, 0))
    errors = replace(errors, baseline=torch.tensor(0.0))
    checked = [check_start(objective, errors) for objective in OBJECTIVES.values() if objective.needs_reference]
    assert len(checked) > 8


def check_start(objective: type[Objective], errors: PairErrors) -> str:
    fields: Any = {"beta": 5000.0}
    output = objective(**fields)(errors)
    if output.margin is not None:
        assert output.margin.abs().max() < 0.02, objective
    if objective.model_fields["kind"].default in ("dpo", "dcpo", "npo", "cdpo", "robust"):
        assert torch.allclose(output.loss, torch.tensor(2.0).log(), atol=1e-4), objective
    return objective.__name__


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_and_rejected_of_a_pair_share_noise_and_level_in_every_family(models, pairs, family: str):
    config = make_config(models[family], pairs, family={"kind": family})
    loaded = config.family.load(CPU, "fp32")
    policy = Policy(PolicySection(), loaded, CPU, "fp32", 0, True)
    batch = next(step_batches(Plan.build(config.data), config.data, Share(0, 4, 4)))[0]
    assert batch.pixels is not None
    batch.pixels[:, 1] = batch.pixels[:, 0]
    denoising = prepare_denoising(policy, config.objective, batch, 0)
    chosen, rejected = denoising.noisy.chunk(2)
    # Each has its own draw from the autoencoder's posterior, which is nearly a point.
    assert (chosen - rejected).abs().mean() < 0.5 * (chosen[0] - chosen[1]).abs().mean()
    levels = denoising.timesteps.chunk(2)
    assert torch.equal(*levels)
    assert len(levels[0].unique()) > 1


CASES = [("sd15", kind) for kind in OBJECTIVES] + [(family, "dpo") for family in FAMILIES if family != "sd15"]


def case(models, pairs, family: str, kind: str, **sections: dict[str, Any]) -> Any:
    given: dict[str, Any] = {"family": {"kind": family}, "objective": {"kind": kind}, "data": data_for(kind)}
    given["loop"] = {"max_steps": 2, "global_batch_size": 4, "worker_batch_size": 4}
    # Large enough steps, and a large enough eps that a gradient near zero has no sign to turn round.
    given["optim"] = {"lr": 1e-3, "eps": 1e-3}
    for name, values in sections.items():
        given[name] = given.get(name, {}) | values
    return make_config(models[family], pairs, **given)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_accumulation_and_ranks_change_nothing_but_rounding(models, pairs, tmp_path, family: str, kind: str):
    whole = run(case(models, pairs, family, kind), tmp_path / "whole")
    pieces = run(case(models, pairs, family, kind, loop={"worker_batch_size": 1}), tmp_path / "pieces")
    shared = run_ranks(case(models, pairs, family, kind, loop={"worker_batch_size": 2}), tmp_path / "shared", 2)
    for other, folder in ((pieces, "pieces"), (shared, "shared")):
        for one, two in zip(rows(tmp_path / "whole"), rows(tmp_path / folder), strict=True):
            assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-3, abs=1e-4), folder
            assert one["train/grad_norm"] == pytest.approx(two["train/grad_norm"], rel=1e-2), folder
        assert close(whole, other, atol=1e-4) > 0.999, folder


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_stopped(models, pairs, tmp_path, family, kind):
    straight = run(case(models, pairs, family, kind), tmp_path / "straight")
    run(case(models, pairs, family, kind, loop={"max_steps": 1}), tmp_path / "stopped")
    resumed = run(case(models, pairs, family, kind), tmp_path / "stopped")
    assert same(straight, resumed)
    assert rows(tmp_path / "straight") == rows(tmp_path / "stopped")

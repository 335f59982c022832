"""What every objective keeps to."""

import math
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from dpo_core.diagnostics import accuracy
from dpo_core.objectives import AnyObjective, LinearDPO, Objective, PairErrors

CLASSES: list[type[Any]] = list(get_args(get_args(AnyObjective)[0]))
OBJECTIVES = [cls() for cls in CLASSES]


def over(objectives: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("objective", objectives, ids=lambda objective: objective.kind)


every = over(OBJECTIVES)
MAPS = [item.name for item in fields(PairErrors) if item.name not in ("timesteps", "baseline")]


def declared(objective: Objective, dtype=torch.float64, pairs: int = 3) -> Any:
    """Error maps of 2 x 3 with what ``objective`` asks for, and nothing else."""
    generator = torch.Generator().manual_seed(1)

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.rand(pairs, 2, 3, generator=generator, dtype=dtype) * (high - low) + low

    chosen, rejected, moved = draw(0.1, 0.4), draw(0.1, 0.4), [draw(-1e-3, 1e-3) for _ in range(2)]
    maps: dict[str, torch.Tensor] = {"policy_chosen": (chosen + moved[0]).requires_grad_()}
    if objective.needs_rejected:
        maps["policy_rejected"] = (rejected + moved[1]).requires_grad_()
    if objective.needs_reference:
        maps |= {"reference_chosen": chosen, "reference_rejected": rejected}
    if objective.needs_shift:
        maps["chosen_shift"] = draw(0, 1e-3).requires_grad_()
    if objective.needs_quality:
        maps |= {"chosen_quality": draw(0, 1), "rejected_quality": draw(0, 1)}
    if objective.needs_baseline:
        maps["baseline"] = torch.tensor(1e-4, dtype=dtype)
    return PairErrors(torch.arange(pairs), **maps)


def unchanged(objective: Objective) -> Any:
    """The same in float32, where the policy is still its reference."""
    errors = declared(objective, torch.float32)
    changes = {"policy_chosen": errors.reference_chosen.clone().requires_grad_()}
    if errors.policy_rejected is not None:
        changes["policy_rejected"] = errors.reference_rejected.clone().requires_grad_()
    if errors.chosen_shift is not None:
        changes["chosen_shift"] = torch.zeros_like(errors.chosen_shift)
    if errors.baseline is not None:
        changes["baseline"] = torch.zeros_like(errors.baseline)
    return replace(errors, **changes)


def test_kinds_are_all_different_and_make_the_objective_they_name():
    assert len({cls().kind for cls in CLASSES}) == len(CLASSES) == 17
    adapter = TypeAdapter(AnyObjective)
    for cls in CLASSES:
        assert adapter.validate_python(cls().model_dump()) == cls()
    with pytest.raises(ValidationError, match="'dpo', 'cdpo'"):
        adapter.validate_python({"kind": "ppo"})


@every
def test_every_pair_has_a_finite_loss_and_where_declared_a_margin(objective):
    for dtype in (torch.float32, torch.float64):
        output = objective(declared(objective, dtype))
        values = [output.loss, *([output.margin] if objective.has_margin else []), *output.metrics.values()]
        assert (output.margin is not None) == objective.has_margin
        assert [(value.shape, value.dtype) for value in values] == [((3,), dtype)] * len(values)
        assert all(value.isfinite().all() for value in values)


@every
def test_what_is_declared_is_what_is_read(objective):
    errors = declared(objective)
    objective(errors)
    for name in (*MAPS, "baseline"):
        if name != "policy_chosen" and getattr(errors, name) is not None:
            with pytest.raises(AssertionError):
                objective(replace(errors, **{name: None}))


@every
def test_the_gradient_reaches_every_image_that_is_denoised(objective):
    errors = declared(objective)
    objective(errors).loss.sum().backward()
    sides = [errors.policy_chosen, errors.policy_rejected] if objective.needs_rejected else [errors.policy_chosen]
    assert all(side.grad.isfinite().all() and (side.grad != 0).any() for side in sides)


@every
def test_the_chosen_error_is_pushed_down_and_with_a_margin_the_rejected_one_up(objective):
    errors = declared(objective)
    objective(errors).loss.sum().backward()
    assert (errors.policy_chosen.grad >= 0).all()
    if objective.has_margin and objective.kind != "dspo":
        assert (errors.policy_rejected.grad <= 0).all()


@every
def test_a_pair_does_not_depend_on_the_batch_it_is_in(objective):
    errors = declared(objective)
    one = {name: getattr(errors, name) for name in MAPS}
    one = {name: value[1:2] for name, value in one.items() if value is not None}
    alone = objective(replace(errors, timesteps=errors.timesteps[1:2], **one))
    torch.testing.assert_close(alone.loss, objective(errors).loss[1:2], rtol=1e-12, atol=0)


# The weight of Linear-DPO has no gradient on purpose; test_linear_dpo.py has its gradient by hand.
@over([objective for objective in OBJECTIVES if not isinstance(objective, LinearDPO)])
def test_gradient_agrees_with_finite_differences(objective):
    errors = declared(objective)
    names = [name for name in ("policy_chosen", "policy_rejected", "chosen_shift") if getattr(errors, name) is not None]

    def loss(*maps):
        return objective(replace(errors, **dict(zip(names, maps, strict=True)))).loss

    assert torch.autograd.gradcheck(loss, tuple(getattr(errors, name) for name in names))


@over([objective for objective in OBJECTIVES if objective.needs_reference])
def test_margin_of_a_policy_equal_to_its_reference_is_zero_and_accuracy_one_half(objective):
    output = objective(unchanged(objective))
    assert output.margin.tolist() == [0, 0, 0]
    assert accuracy(output.margin).tolist() == [0.5] * 3


START = {kind: math.log(2) for kind in ("dpo", "cdpo", "robust", "dcpo", "npo")}
START |= {"hinge": 1.0, "ipo": 0.25, "kto": 0.5}


@over([objective for objective in OBJECTIVES if objective.kind in START])
def test_loss_of_a_policy_equal_to_its_reference_depends_on_nothing(objective):
    assert objective(unchanged(objective)).loss.tolist() == pytest.approx([START[objective.kind]] * 3, abs=1e-7)

import builtins
import math
import warnings
from typing import Any

import pytest
import torch

from dpo_core.checkpoint import TrainingState, load_latest, save_checkpoint
from dpo_core.optim import OptimSection, clip, make_optimizer, make_schedule
from dpo_core.prodigy import Prodigy
from dpo_core.recipe import TrainSection

PEAK = 0.5
# name, fields, {updates done: learning rate over peak}, all over 10 updates; values by hand.
SCHEDULES = [
    ("constant", {}, {0: 1, 5: 1, 9: 1, 20: 1}),
    ("constant_with_warmup", {"warmup_steps": 4}, {0: 0, 1: 0.25, 3: 0.75, 4: 1, 9: 1}),
    ("linear", {"warmup_steps": 2}, {0: 0, 1: 0.5, 2: 1, 6: 0.5, 9: 0.125, 10: 0, 11: 0}),
    ("cosine", {"warmup_steps": 2}, {1: 0.5, 2: 1, 4: (1 + math.sqrt(0.5)) / 2, 6: 0.5, 10: 0}),
    ("cosine_with_restarts", {"warmup_steps": 2, "cycles": 2}, {2: 1, 4: 0.5, 6: 1, 8: 0.5, 10: 0}),
    ("polynomial", {"warmup_steps": 2, "power": 2.0}, {1: 0.5, 2: 1, 6: 0.25 + 0.75e-7 / PEAK, 11: 1e-7 / PEAK}),
    ("piecewise_constant", {"step_rules": "1:2,0.1:5,0.01"}, {0: 1, 1: 1, 2: 0.1, 4: 0.1, 5: 0.01, 9: 0.01}),
]
NAMES = ["adamw", "adamw_8bit", "adafactor", "prodigy"]


def section(**fields: Any) -> OptimSection:
    return OptimSection.model_validate(({"lr": 1.0} if fields.get("name") == "prodigy" else {}) | fields)


def weights() -> list[torch.nn.Parameter]:
    """One tensor large enough to be kept in 8 bit, and one that is not."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((64, 128), (5,))]


def train(parameters, optimizer, schedule, updates: range) -> None:
    for update in updates:
        generator = torch.Generator().manual_seed(update)
        for parameter in parameters:
            parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("name", "fields", "expected"), SCHEDULES)
def test_a_schedule_has_the_values_that_diffusers_documents(name, fields, expected):
    config = section(lr=PEAK, schedule=name, **fields)
    optimizer = make_optimizer(config, weights())
    schedule = make_schedule(config, optimizer, 10)
    seen = {}
    for done in range(21):
        seen[done] = optimizer.param_groups[0]["lr"] / PEAK
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        schedule.step()
    assert {done: seen[done] for done in expected} == pytest.approx(expected, abs=1e-12)


def test_every_schedule_of_diffusers_can_be_chosen():
    from diffusers.optimization import SchedulerType

    assert {name for name, _, _ in SCHEDULES} == {kind.value for kind in SchedulerType}


def test_a_schedule_goes_on_where_it_was_saved_even_with_an_optimiser_made_anew():
    config = section(lr=PEAK, schedule="linear")
    first = make_schedule(config, make_optimizer(config, weights()), 10)
    first.step()
    first.step()
    optimizer = make_optimizer(config, weights())
    second = make_schedule(config, optimizer, 10)
    second.load_state_dict(first.state_dict())
    assert optimizer.param_groups[0]["lr"] == first.get_last_lr()[0] == pytest.approx(0.8 * PEAK)


def test_a_first_update_skipped_for_its_gradient_counts_as_a_tick_and_warns_of_nothing():
    config, parameters = section(lr=PEAK, schedule="linear"), weights()
    optimizer = make_optimizer(config, parameters)
    schedule = make_schedule(config, optimizer, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # pyright: ignore[reportPrivateImportUsage]
    before = parameters[0].detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler.scale((parameters[0] * torch.inf).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    assert torch.equal(parameters[0], before)
    assert schedule.get_last_lr()[0] == pytest.approx(0.9 * PEAK)


def test_scale_lr_multiplies_the_learning_rate_by_the_global_batch():
    optimizer = make_optimizer(section(lr=1e-8, scale_lr=True), weights(), 2048)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.048e-5)
    assert make_optimizer(section(lr=1e-8), weights(), 2048).param_groups[0]["lr"] == 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_saved_and_loaded_goes_on_with_the_same_bits(name, tmp_path):
    config = section(name=name, schedule="linear", warmup_steps=2)
    straight = weights()
    optimizer = make_optimizer(config, straight)
    train(straight, optimizer, make_schedule(config, optimizer, 12), range(8))

    stopped = weights()
    optimizer = make_optimizer(config, stopped)
    schedule = make_schedule(config, optimizer, 12)
    train(stopped, optimizer, schedule, range(4))
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    save_checkpoint(tmp_path, TrainingState(4, {str(i): w for i, w in enumerate(stopped)}, state, {}), keep=1)

    saved = load_latest(tmp_path)
    assert saved is not None
    resumed = [torch.nn.Parameter(tensor) for tensor in saved.weights.values()]
    optimizer = make_optimizer(config, resumed)
    schedule = make_schedule(config, optimizer, 12)
    optimizer.load_state_dict(saved.optim["optimizer"])
    schedule.load_state_dict(saved.optim["schedule"])
    train(resumed, optimizer, schedule, range(4, 8))
    assert all(torch.equal(one, other) for one, other in zip(straight, resumed, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(straight, weights(), strict=True))


def test_moments_of_large_tensors_are_kept_in_8_bit():
    config, parameters = section(name="adamw_8bit"), weights()
    optimizer = make_optimizer(config, parameters)
    train(parameters, optimizer, make_schedule(config, optimizer, 10), range(1))
    large, small = (optimizer.state[parameter]["state1"].dtype for parameter in parameters)
    assert (large, small) == (torch.uint8, torch.float32)


def test_an_8_bit_update_differs_from_a_float32_one_by_little():
    results = []
    for name in ("adamw", "adamw_8bit"):
        config, parameters = section(name=name, lr=1e-2), weights()
        optimizer = make_optimizer(config, parameters)
        train(parameters, optimizer, make_schedule(config, optimizer, 10), range(10))
        results.append(parameters[0].detach() - weights()[0].detach())
    assert 0 < (results[0] - results[1]).norm() < 0.05 * results[0].norm()


def test_adafactor_takes_the_steps_of_the_salesforce_script():
    from transformers.optimization import Adafactor

    ours, theirs = weights(), weights()
    config = section(name="adafactor", lr=1e-3, schedule="constant")
    optimizer = make_optimizer(config, ours)
    train(ours, optimizer, make_schedule(config, optimizer, 10), range(3))
    reference = Adafactor(theirs, lr=1e-3, weight_decay=1e-2, clip_threshold=1.0, scale_parameter=False,
                          relative_step=False)  # fmt: skip
    train(theirs, reference, make_schedule(config, reference, 10), range(3))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_prodigys_step_size_grows_as_its_paper_says():
    # Algorithm 4 of arXiv 2306.06101 in one dimension, start 1, gradients 2 and then 3.
    beta1, beta2, d0, lr = 0.9, 0.999, 1e-3, 10.0
    x = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Prodigy([x], lr=lr, betas=(beta1, beta2), eps=0.0, d0=d0)
    x.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()
    # Corrected for its bias, the first step is lr d0 along the sign; x0 - x was zero before it, so d stays.
    assert x.item() == pytest.approx(1 - lr * d0, abs=1e-12)
    assert optimizer.param_groups[0]["d"] == d0
    x.grad = torch.tensor([3.0], dtype=torch.float64)
    optimizer.step()
    step = lr * d0 * math.sqrt(1 - beta2**2) / (1 - beta1**2)
    numerator, s = step * 3 * (lr * d0), math.sqrt(beta2) * 2 * d0 + 3 * d0
    assert optimizer.param_groups[0]["d"] == pytest.approx(numerator / s)
    assert numerator / s > 10 * d0
    first, second = beta1 * 0.1 * 2 + 0.1 * 3, beta2 * 0.001 * 4 + 0.001 * 9
    assert x.item() == pytest.approx(1 - lr * d0 - step * first / math.sqrt(second), abs=1e-12)


def test_prodigy_finds_a_step_size_six_orders_above_its_first_and_solves_least_squares():
    generator = torch.Generator().manual_seed(0)
    matrix, wanted = torch.randn(64, 8, generator=generator), torch.full((8,), 3.0)
    x = torch.nn.Parameter(torch.zeros(8))
    optimizer = make_optimizer(section(name="prodigy", weight_decay=0.0), [x])
    for _ in range(400):
        optimizer.zero_grad()
        (matrix @ (x - wanted)).square().mean().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["d"] > 0.1
    assert torch.allclose(x, wanted, atol=0.05)


def test_prodigy_with_a_learning_rate_of_zero_moves_nothing():
    parameters = weights()
    optimizer = Prodigy(parameters, lr=0.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(parameters[0], weights()[0])
    assert not optimizer.state[parameters[0]]


def test_clipping_scales_the_whole_gradient_and_tells_the_norm_before():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    assert clip(parameters, None).item() == 5.0
    assert clip(parameters, 1.0).item() == 5.0
    assert [gradient.item() for gradient in gradients] == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schedule": "piecewise_constant"}, "schedule piecewise_constant needs step_rules"),
        ({"step_rules": "1:5,0.1"}, "schedule constant_with_warmup has no step_rules"),
        ({"schedule": "piecewise_constant", "step_rules": "1:9,0.1:5,0"}, "is not FACTOR:UPDATE,.* rising updates"),
        ({"schedule": "piecewise_constant", "step_rules": "fast"}, "'fast' is not FACTOR:UPDATE"),
        ({"schedule": "constant", "warmup_steps": 5}, r"constant has no warmup_steps \(5\)"),
        ({"schedule": "cosine", "cycles": 3}, r"cycles \(3\) belongs to schedule cosine_with_restarts, not cosine"),
        ({"power": 2.0}, r"power \(2\) belongs to schedule polynomial"),
        ({"name": "prodigy", "lr": 1e-4}, r"prodigy multiplies its own step size by lr \(0.0001"),
        ({"name": "prodigy", "lr": 1.0, "scale_lr": True}, "without scale_lr"),
        ({"name": "adafactor", "beta1": 0.5}, "adafactor has no beta1"),
    ],
)
def test_fields_that_do_not_belong_together_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        OptimSection(**fields)


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match=r"cycles.*power"):
        OptimSection(cycles=2, power=3.0)


def test_a_polynomial_schedule_from_below_its_end_is_refused_unless_the_batch_lifts_it():
    given = {"optim": {"lr": 1e-8, "schedule": "polynomial"}}
    with pytest.raises(ValueError, match=r"polynomial ends at 1e-07: optim.lr=1e-08 must be above"):
        TrainSection.model_validate(given)
    given["optim"]["scale_lr"] = True
    TrainSection.model_validate(given)


def test_a_missing_8_bit_library_is_named_with_its_extra(monkeypatch):
    whole = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"optim.name=adamw_8bit needs bitsandbytes: pip install 'palate\[optim\]'"):
        make_optimizer(section(name="adamw_8bit"), weights())

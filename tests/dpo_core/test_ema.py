import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from dpo_core.checkpoint import load_latest
from dpo_core.ema import EMA
from tests.train_runs import Weights, make_config, run, same


def weights() -> dict[str, torch.nn.Parameter]:
    return {"a": torch.nn.Parameter(torch.zeros(2)), "b": torch.nn.Parameter(torch.zeros(3, 3))}


def move(parameters: dict[str, torch.nn.Parameter], update: int) -> None:
    generator = torch.Generator().manual_seed(update)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += torch.randn(parameter.shape, generator=generator)


def test_the_average_is_the_one_of_a_hand_calculation():
    parameters = {"a": torch.nn.Parameter(torch.tensor([8.0]))}
    ema = EMA(0.2, parameters)
    for value in (1.0, 12.0, 12.0):
        parameters["a"].data.fill_(value)
        ema.update()
    # Decays 0, 2/11 and (3/12 is above 0.2) 0.2: 1, then 1 * 2/11 + 12 * 9/11 = 10, then 10 * 0.2 + 12 * 0.8.
    assert ema.average["a"].item() == pytest.approx(11.6)


def test_the_average_is_the_one_of_diffusers():
    parameters = weights()
    ours, theirs = EMA(0.9, parameters), EMAModel(list(parameters.values()), decay=0.9)
    for update in range(100):
        move(parameters, update)
        ours.update()
        theirs.step(list(parameters.values()))
    pairs = zip(ours.average.values(), theirs.shadow_params, strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_half_precision_weights_are_averaged_in_float32():
    parameters = {"a": torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}
    ema = EMA(0.999, parameters)
    ema.update()
    ema.updates = 100_000
    parameters["a"].data.fill_(1.0078125)
    ema.update()
    # The step of 8e-6 is far below bfloat16's spacing of 8e-3.
    assert 1.0 < ema.average["a"].item() < 1.00001


def test_swapping_shows_the_average_and_gives_back_the_bits():
    parameters = weights()
    ema = EMA(0.9, parameters)
    for update in range(3):
        move(parameters, update)
        ema.update()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    average = {name: tensor.clone() for name, tensor in ema.average.items()}
    with ema.swapped():
        assert all(torch.equal(parameters[name], average[name]) for name in parameters)
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)
    assert all(torch.equal(ema.average[name], average[name]) for name in parameters)


def test_the_average_of_other_weights_is_refused():
    with pytest.raises(ValueError, match=r"averages other weights.*'b'"):
        EMA(0.9, {"a": weights()["a"]}).load_state(EMA(0.9, weights()).state())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_exports_the_average_and_resumes_it_to_the_last_bit(tiny_sd, tiny_pairs, tmp_path, method):
    def train(folder: str, steps: int) -> Weights:
        sections = {"optim": {"ema_decay": 0.5}, "policy": {"method": method}, "loop": {"max_steps": steps}}
        return run(make_config(tiny_sd, tiny_pairs, **sections), tmp_path / folder)

    weights = train("straight", 4)
    train("stopped", 2)
    train("stopped", 4)
    averages = []
    for name in ("straight", "stopped"):
        saved = load_latest(tmp_path / name / "checkpoints")
        assert saved is not None
        ema = saved.optim["learner"]["ema"]
        assert ema["updates"] == 4
        averages.append(ema["average"])
    assert same(averages[0], averages[1])
    assert not any(torch.equal(averages[0][name], weights[name]) for name in weights)
    file = "unet/diffusion_pytorch_model.safetensors" if method == "full" else "pytorch_lora_weights.safetensors"
    exported = load_file(tmp_path / "straight" / "model" / file)
    written = torch.cat([tensor.flatten() for tensor in exported.values()]).double()
    expected = torch.cat([tensor.flatten() for tensor in averages[0].values()]).double()
    assert torch.equal(written.sort().values, expected.sort().values)

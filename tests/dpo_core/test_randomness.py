import torch

from dpo_core import randomness


def test_the_same_pair_draws_the_same_noise_wherever_it_stands_in_a_batch():
    alone = randomness.normal((4, 3, 3), 7, [2], ["b"], "noise")
    among = randomness.normal((4, 3, 3), 7, [2, 2, 2], ["a", "b", "c"], "noise")
    assert torch.equal(alone[0], among[1])


def test_seed_epoch_pair_and_purpose_each_change_the_draw():
    keys = {
        randomness.key(0, 0, "a", "noise"),
        randomness.key(1, 0, "a", "noise"),
        randomness.key(0, 1, "a", "noise"),
        randomness.key(0, 0, "b", "noise"),
        randomness.key(0, 0, "a", "timestep"),
    }
    assert len(keys) == 5


def test_uniform_draws_fill_the_unit_interval_evenly():
    draws = torch.tensor([randomness.uniform(0, 0, str(i), "timestep") for i in range(4000)], dtype=torch.float64)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean().item() - 0.5) < 0.02
    assert abs(draws.var().item() - 1 / 12) < 0.005


def test_draws_never_change_between_versions_of_the_program():
    assert randomness.key(1, 2, "pair", "noise") == KEY_OF_1_2_PAIR_NOISE


KEY_OF_1_2_PAIR_NOISE = 5331805294982079413

import pytest
import torch

from dpo_core.noise import NoiseSection, input_noise, pair_noise, timestep_uniforms

SHAPE = (4, 16, 16)
NAMES = (7, [0, 0], ["a", "b"])
WHITE = NoiseSection()


def many(section: NoiseSection, pairs: int = 200) -> torch.Tensor:
    return pair_noise(section, SHAPE, 7, [0] * pairs, [str(index) for index in range(pairs)])


MIXED = NoiseSection(offset=1, pyramid_discount=0.5)


@pytest.mark.parametrize("section", [WHITE, NoiseSection(offset=0.1), NoiseSection(pyramid_discount=0.8), MIXED])
def test_noise_of_a_pair_does_not_depend_on_the_batch_it_is_in(section: NoiseSection) -> None:
    both, alone = pair_noise(section, SHAPE, *NAMES), pair_noise(section, SHAPE, 7, [0], ["b"])
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(alone, pair_noise(section, SHAPE, 7, [1], ["b"]))
    assert not torch.equal(alone, pair_noise(section, SHAPE, 8, [0], ["b"]))


def test_white_noise_is_white():
    noise = many(WHITE)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_offset_moves_each_channel_as_a_whole():
    added = many(NoiseSection(offset=0.5)) - many(WHITE)
    assert (added - added[:, :, :1, :1]).abs().max() < 1e-6
    assert added[:, :, 0, 0].std().item() == pytest.approx(0.5, abs=0.03)
    assert added[:, 0, 0, 0].ne(added[:, 1, 0, 0]).all()


def test_pyramid_noise_has_variance_one_for_every_pair_and_coarse_structure():
    white, pyramid = many(WHITE), many(NoiseSection(pyramid_discount=0.9))
    torch.testing.assert_close(pyramid.std(dim=(1, 2, 3)), torch.ones(200))

    def neighbours(noise: torch.Tensor) -> float:
        return (noise[..., 1:] * noise[..., :-1]).mean().item()

    assert neighbours(white) == pytest.approx(0, abs=0.02)
    assert neighbours(pyramid) > 0.4


def test_pyramid_noise_reaches_latents_that_are_not_square():
    noise = pair_noise(NoiseSection(pyramid_discount=0.9), (4, 16, 24), *NAMES)
    assert noise.shape == (2, 4, 16, 24)
    assert noise.isfinite().all()


def test_input_perturbation_is_added_to_the_noise_that_the_pair_shares():
    # The Salesforce script forms the perturbed noise before it shares the noise: its rejected images are noised with
    # one noise and compared with another. Here what is left without the perturbation is the shared noise on both sides.
    shared = pair_noise(WHITE, SHAPE, *NAMES).repeat(2, 1, 1, 1)
    noised = input_noise(NoiseSection(input_perturbation=0.1), shared, 2, *NAMES)
    extra = (noised - shared) / 0.1
    assert extra.std().item() == pytest.approx(1, abs=0.05)
    assert not torch.allclose(extra[:2], extra[2:], atol=0.1)
    alone = input_noise(NoiseSection(input_perturbation=0.1), shared[[1, 3]], 2, 7, [0], ["b"])
    assert torch.equal(alone, noised[[1, 3]])


def test_chosen_images_are_perturbed_alike_with_and_without_rejected_ones():
    shared, section = pair_noise(WHITE, SHAPE, *NAMES), NoiseSection(input_perturbation=0.1)
    both = input_noise(section, shared.repeat(2, 1, 1, 1), 2, *NAMES)
    assert torch.equal(input_noise(section, shared, 1, *NAMES), both[:2])


def test_without_perturbation_the_input_is_the_noise_itself():
    shared = pair_noise(WHITE, SHAPE, *NAMES)
    assert input_noise(WHITE, shared, 1, *NAMES) is shared


def test_one_number_in_a_pair_s_name_makes_its_timestep():
    uniforms = timestep_uniforms(*NAMES)
    assert uniforms.dtype == torch.float64
    assert uniforms[1:].tolist() == timestep_uniforms(7, [0], ["b"]).tolist()
    assert ((uniforms >= 0) & (uniforms < 1)).all()
    spread = timestep_uniforms(7, [0] * 2000, [str(index) for index in range(2000)])
    assert spread.mean().item() == pytest.approx(0.5, abs=0.02)

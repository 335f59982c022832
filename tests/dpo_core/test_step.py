import pytest
import torch

from dpo_core.data.batches import PairBatch
from dpo_core.families import SD15
from dpo_core.objectives import DPO, SFT
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import pair_errors, prepare_denoising
from tests.benchmarks.training_step import flops, latent_batch, make_step

CPU = torch.device("cpu")


def policy_of(model, objective) -> Policy:
    family = SD15(model=str(model)).load(CPU, "fp32")
    return Policy(PolicySection(), family, CPU, "fp32", 0, objective.needs_reference)


def one_denoising() -> int:
    family = SD15().load(CPU, "fp32")
    noisy, told = torch.zeros(1, 4, 16, 16), family.condition(["a red circle"], torch.zeros(1, 6, dtype=torch.int32))
    with torch.no_grad():
        return flops(lambda: family.predict(family.denoiser, noisy, torch.tensor([500]), told))


def errors_of(policy: Policy, batch: PairBatch):
    return pair_errors(policy, DPO(), prepare_denoising(policy, DPO(), batch, seed=0))


def test_a_dpo_pair_costs_eight_denoisings_and_an_sft_image_three():
    once, batch = one_denoising(), latent_batch(2, (4, 16, 16))
    make_step(DPO(), "full", batch, CPU)()
    assert 7.8 < flops(make_step(DPO(), "full", batch, CPU)) / 2 / once < 8.2
    assert 2.9 < flops(make_step(SFT(), "full", batch, CPU)) / 2 / once < 3.1


def test_chosen_and_rejected_share_noise_and_timestep_and_other_pairs_do_not(tiny_sd):
    batch = latent_batch(2, (4, 8, 8))
    assert batch.posterior is not None
    batch.posterior[:, :, 1] = 0.0
    batch.posterior[:, 1, 0] = batch.posterior[:, 0, 0]
    errors = errors_of(policy_of(tiny_sd, DPO()), batch)
    assert errors.policy_rejected is not None
    assert torch.allclose(errors.policy_chosen, errors.policy_rejected, atol=1e-5)
    assert not torch.allclose(errors.policy_chosen[0], errors.policy_chosen[1])
    assert errors.timesteps[0] != errors.timesteps[1]


def test_what_is_random_for_a_pair_does_not_depend_on_the_batch_it_is_in(tiny_sd):
    policy, whole = policy_of(tiny_sd, DPO()), latent_batch(3, (4, 8, 8))
    assert whole.posterior is not None
    alone = PairBatch(["1"], [0], torch.ones(1), whole.chosen_captions[:1], whole.rejected_captions[:1])
    alone.posterior = whole.posterior[1:2]
    alone.geometry = torch.zeros(1, 2, 6, dtype=torch.int32)
    errors = [errors_of(policy, batch) for batch in (whole, alone)]
    assert errors[0].timesteps[1] == errors[1].timesteps[0]
    assert torch.allclose(errors[0].policy_chosen[1], errors[1].policy_chosen[0], atol=1e-4)


def test_quality_maps_must_lie_on_the_latents(tiny_sd):
    policy, batch = policy_of(tiny_sd, DPO()), latent_batch(2, (4, 8, 8))
    batch.quality = torch.rand(2, 2, 8, 8)
    errors = errors_of(policy, batch)
    assert errors.chosen_quality is not None
    assert errors.rejected_quality is not None
    assert torch.equal(torch.stack([errors.chosen_quality, errors.rejected_quality], dim=1), batch.quality)
    batch.quality = torch.rand(2, 2, 4, 8)
    with pytest.raises(ValueError, match=r"quality maps .* are 4 x 8, but the latents are 8 x 8"):
        errors_of(policy, batch)

import math
from dataclasses import replace

import pytest
import torch

from dpo_core.data.batches import PairBatch
from dpo_core.families import SD15
from dpo_core.objectives import DPO, NPO
from dpo_core.policy import Policy, PolicySection
from dpo_core.step import pair_errors, prepare_denoising
from tests.benchmarks.training_step import latent_batch
from tests.error_maps import error_maps

CPU = torch.device("cpu")


def test_loss_by_hand():
    # as DPO, on errors that the step has already exchanged
    output = NPO(beta=1000.0)(error_maps([0.099], [0.202], [0.1], [0.2]))
    assert output.loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))


def test_it_trains_on_what_was_rejected(tiny_sd):
    family = SD15(model=str(tiny_sd)).load(CPU, "fp32")
    policy = Policy(PolicySection(), family, CPU, "fp32", 0, True)
    batch = replace(latent_batch(2, (4, 8, 8)), chosen_captions=["a dog", "a cat"], rejected_captions=["a", "b"])
    assert batch.posterior is not None
    assert batch.geometry is not None
    swapped = PairBatch(batch.pair_ids, batch.epochs, batch.weights, batch.rejected_captions, batch.chosen_captions)
    swapped = replace(swapped, posterior=batch.posterior[:, [1, 0]], geometry=batch.geometry[:, [1, 0]])
    ours = pair_errors(policy, NPO(), prepare_denoising(policy, NPO(), batch, seed=0))
    by_data = pair_errors(policy, DPO(), prepare_denoising(policy, DPO(), swapped, seed=0))
    straight = pair_errors(policy, DPO(), prepare_denoising(policy, DPO(), batch, seed=0))
    assert torch.equal(ours.policy_chosen, by_data.policy_chosen)
    assert not torch.allclose(ours.policy_chosen, straight.policy_chosen)

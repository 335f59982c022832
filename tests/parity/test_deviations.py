"""Where training scripts of others do something else than we do: their recorded value, ours, and why.

Deviations of a loss alone are in tests/dpo_core/objectives/test_parity.py.
"""

import copy
import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import logsigmoid

from dpo_core.diagnostics import accuracy
from dpo_core.noise import NoiseSection, input_noise
from dpo_core.noising import VelocityNoising
from dpo_core.objectives import DPO
from tests.parity.replay import Case, load_rows
from tests.recorded import CASES, recorded_errors


def test_beta_of_diffusers_sd_script_is_half_of_ours(tmp_path):
    # Its margin lacks the factor one half that the paper, the other scripts and diffusers' own SDXL script have.
    case = Case("diffusers_lora_sd", tmp_path)
    theirs, recorded = case.meta["hyper_parameters"]["beta_dpo"], case.micro(1)
    inputs = (recorded["policy_pred"], case.denoising(1).target, recorded["ref_pred"])
    margins = [DPO(beta=beta)(recorded_errors(DPO(), *inputs)).margin for beta in (theirs, 2 * theirs)]
    assert recorded["u"].abs().max() > 0.8
    torch.testing.assert_close(margins[0], 0.5 * recorded["u"], rtol=0, atol=case.tolerance["u_atol"])
    torch.testing.assert_close(margins[1], recorded["u"], rtol=0, atol=case.tolerance["u_atol"])


def test_reducing_errors_in_half_precision_ruins_the_first_margins(tmp_path):
    # Salesforce's script, DCPO and SUDO cast the reference to half precision and square and average its error there,
    # while the policy's prediction comes back in float32. With beta 5000, one rounding of an error of 0.5 in bf16
    # (0.002) is 5 in the margin, and the loss of a policy that is its reference is not ln 2.
    case = Case("salesforce_dpo_sd", tmp_path, precision="bf16")
    objective = DPO(beta=5000.0)
    denoising, policy = case.denoising(0), case.policy
    reference = copy.deepcopy(policy.model).to(torch.bfloat16)
    with torch.no_grad():
        prediction = policy.predict(denoising.noisy, denoising.timesteps, denoising.conditioning).float()
        half = {name: tensor.bfloat16() for name, tensor in denoising.conditioning.items()}
        frozen = policy.family.predict(reference, denoising.noisy.bfloat16(), denoising.timesteps, half)
    target = denoising.target.bfloat16()
    error = (prediction - target.float()).square().mean(dim=(1, 2, 3))
    frozen_error = (frozen - target).square().mean(dim=(1, 2, 3)).float()
    improvement = (frozen_error - error).view(2, 4)
    theirs = 0.5 * objective.beta * (improvement[0] - improvement[1])
    assert theirs.abs().max() > 1
    assert (-logsigmoid(theirs) - math.log(2)).abs().max() > 0.3  # of a pair; their mean may come near ln 2 by chance

    seen = case.look(0)
    ours = objective(seen.errors)
    assert ours.margin is not None
    assert ours.margin.abs().max() < 0.02
    torch.testing.assert_close(ours.loss, torch.full((4,), math.log(2)), rtol=0, atol=1e-6)


def test_the_reduction_alone_is_enough_to_ruin_them(tmp_path):
    # The same predictions for policy and reference: only the precision of squares and means differs.
    case = Case("salesforce_dpo_sd", tmp_path)
    recorded = case.micro(0)
    prediction, target = recorded["ref_pred"].bfloat16(), case.denoising(0).target.bfloat16()
    single = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
    half = (prediction - target).square().mean(dim=(1, 2, 3)).float()
    improvement = (half - single).view(2, 4)
    theirs = 0.5 * 5000 * (improvement[0] - improvement[1])
    ours = DPO(beta=5000.0)(recorded_errors(DPO(), prediction, target, prediction)).margin
    assert theirs.abs().max() > 1
    assert ours is not None
    assert not ours.any()


def test_perturbing_the_input_before_noise_is_shared_asks_for_the_wrong_noise(tmp_path):
    # Salesforce's script forms the perturbed noise of 2B images first and shares the plain noise of each pair after.
    # What the rejected image was really noised with then has nothing to do with its target: a perfect denoiser would
    # be charged 2 + p^2. Ours is charged the perturbation alone, on both sides.
    amount = 0.1
    draws = torch.randn(2, 8, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    perturbed = draws[0] + amount * draws[1]
    shared = draws[0][:4].repeat(2, 1, 1, 1)
    theirs = (perturbed - shared).square().mean(dim=(1, 2, 3))
    assert theirs[:4].tolist() == pytest.approx([amount**2] * 4, rel=0.1)
    assert theirs[4:].tolist() == pytest.approx([2 + amount**2] * 4, rel=0.1)
    section = NoiseSection(input_perturbation=amount)
    mixed = input_noise(section, shared, 2, 0, [0] * 4, list("abcd"))
    ours = (mixed - shared).square().mean(dim=(1, 2, 3))
    assert ours.tolist() == pytest.approx([amount**2] * 8, rel=0.1)


def test_sizes_and_crops_told_to_sdxl_are_each_image_s_own(tmp_path):
    # Salesforce's script tells one constant for every image; diffusers' script tells those of image 0 for both, to
    # whose size it stretches image 1. SDXL learned to draw what it is told (arXiv 2307.01952, section 2.2).
    constant = Case("salesforce_dpo_sdxl", tmp_path)
    row = constant.micro(0)["rows"].tolist().index(5)
    told = constant.micro(0)["add_time_ids"]
    assert told[row].tolist() == told[4 + row].tolist() == [64, 64, 0, 0, 64, 64]

    batch = load_rows(constant.config.data, tmp_path)[5]
    assert batch.geometry is not None
    # Image 1 won: 40 x 48, scaled to 64 x 77 and cropped in the middle; image 0 is 48 x 40.
    own = [[48, 40, 6, 0, 64, 64], [40, 48, 0, 6, 64, 64]]
    assert batch.geometry[0].tolist() == own
    ours = constant.policy.condition(batch, 2)[0]["time_ids"]
    assert ours.tolist() == own

    first = Case("diffusers_lora_sdxl", tmp_path).micro(0)
    assert torch.equal(first["add_time_ids"][:4], first["add_time_ids"][4:])


def test_images_are_resized_by_an_antialiased_cubic(tmp_path):
    # The scripts resize with torchvision's default, bilinear, and round the longer side down. A
    # cubic blurs less of the fine detail that a model is meant to learn.
    case = Case("dcpo_sd", tmp_path)
    recorded, loaded = case.micro(0), load_rows(case.config.data, tmp_path)
    table = pq.read_table(CASES / "pickapic_tiny" / "train.parquet").to_pylist()
    for place, row in enumerate(recorded["rows"].tolist()):
        chosen = table[row]["jpg_0" if table[row]["label_0"] == 1 else "jpg_1"]
        image = Image.open(io.BytesIO(chosen)).convert("RGB")
        size = [int(32 * side / min(image.size)) for side in image.size]
        left, top = (round((side - 32) / 2) for side in size)
        theirs = image.resize((size[0], size[1]), Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
        recorded_pixels = recorded["pixel_values_u8"][place].permute(1, 2, 0).numpy()
        assert (np.asarray(theirs) == recorded_pixels).all()
        ours = loaded[row].pixels
        assert ours is not None
        difference = (ours[0, 0].permute(1, 2, 0).float() - torch.from_numpy(recorded_pixels).float()).abs()
        assert 0.1 < difference.mean() < 5


def test_a_dropped_caption_of_sdxl_is_zeros_as_guidance_has_it(tmp_path):
    # The script trains the encoded empty text; diffusers' pipeline guides away from zeros (the model's own setting).
    case = Case("salesforce_dpo_sdxl", tmp_path)
    micro, row = next(
        (micro, captions.index("")) for micro, captions in enumerate(case.meta["captions"]) if "" in captions
    )
    assert case.micro(micro)["encoder_hidden_states"][row].abs().mean() > 0.1
    ours = case.policy.family.condition([""], torch.zeros(1, 6, dtype=torch.int32))
    assert not ours["text"].any()
    assert not ours["text_embeds"].any()


def test_ties_are_left_out_and_do_not_count_as_wins_of_image_0(tmp_path):
    case = Case("diffusers_lora_sd", tmp_path)
    loaded = load_rows(case.config.data, tmp_path)
    trained = torch.cat([case.micro(index)["rows"] for index in range(3)]).tolist()
    ties = [row for row in trained if row not in loaded]
    assert len(loaded) == case.meta["hyper_parameters"]["train_batch_size"] * 4  # 16 of 24 rows are decided
    assert len(ties) >= 3


def test_a_margin_of_zero_counts_half_and_not_as_an_error(tmp_path):
    # The Salesforce family counts only u > 0: 0 % at the first step, for a policy that is its reference.
    margin = Case("salesforce_dpo_sd", tmp_path).micro(0)["u"]
    assert (margin > 0).float().mean() == 0
    assert accuracy(margin).tolist() == [0.5] * 4


def test_a_v_prediction_model_is_compared_with_v_and_not_with_noise(tmp_path):
    # DCPO's script overwrites the prediction type, so the SD 2.1 of its own launcher is compared with the noise.
    case = Case("diffusers_lora_sd_v", tmp_path)
    assert isinstance(case.policy.family.noising, VelocityNoising)
    recorded, ours = case.micro(0), case.denoising(0).target
    torch.testing.assert_close(ours, recorded["target"], rtol=0, atol=1e-6)
    assert (ours - recorded["noise"]).square().mean() > 0.3


def test_sudo_s_permutation_makes_images_their_own_rejected_ones(tmp_path):
    # Two fixed points of four in each recorded batch: there the pair differs by the autoencoder's draw alone.
    # Ours come from other pairs of the data, never from their own (tests/dpo_core/data/test_donors.py).
    case = Case("sudo_sd", tmp_path)
    fixed = [(case.micro(index)["perm"] == torch.arange(4)).sum().item() for index in range(3)]
    assert fixed == [2, 2, 2]
    pixels = case.micro(0)["pixel_values_u8"]
    assert [torch.equal(pixels[pair], pixels[4 + pair]) for pair in range(4)] == [False, False, True, True]

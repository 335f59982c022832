"""The training scripts of others, replayed: their recorded inputs through our step give their recorded numbers.

Every tolerance is the recording's own advice, about four to five times what replays of it in float32 and float64
differed by. PatchDPO has a file of its own.
"""

import pytest
import torch

from tests.parity.replay import Case, errors_of_images, load_rows

CASES = [
    "salesforce_dpo_sd",
    "salesforce_dpo_sd_accum2",
    "salesforce_dpo_sd_adafactor",
    "salesforce_dpo_sdxl",
    "salesforce_sft_sd",
    "sudo_sd",
    "dcpo_sd",
    "diffusers_lora_sd",
    "diffusers_lora_sd_v",
    "diffusers_lora_sd_hinge",
    "diffusers_lora_sdxl",
]


def close(ours: torch.Tensor, recorded: torch.Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    torch.testing.assert_close(ours, recorded, atol=atol, rtol=rtol)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_the_script(name, tmp_path):
    case = Case(name, tmp_path)
    advice = case.tolerance
    parameters = {}
    for number, seen, lr, norm, parameters in case.run():
        for index, ours in seen:
            recorded = case.micro(index)
            close(ours.prediction, recorded["policy_pred"], atol=advice["pred_atol"])
            close(errors_of_images(ours.errors, "policy"), recorded["L_theta"], rtol=advice["L_rtol"])
            if ours.reference is not None:
                close(ours.reference, recorded["ref_pred"], atol=advice["pred_atol"])
                close(errors_of_images(ours.errors, "reference"), recorded["L_ref"], rtol=advice["L_rtol"])
                assert ours.output.margin is not None
                close(ours.output.margin, recorded["u"], atol=advice["u_atol"])
            close(ours.output.loss.mean(), recorded["loss"], atol=advice["loss_atol"])
            if name == "sudo_sd":
                preference = ours.output.metrics["dpo_loss"].mean()
                close(preference, recorded["dpo_loss"], atol=2 * advice["loss_atol"])
        recorded = case.update(number)
        assert lr == pytest.approx(recorded["lr"].item(), rel=1e-12)
        close(norm.double(), recorded["grad_norm_f64"], rtol=advice["grad_norm_rtol"])
        for parameter, (total, absolute) in zip(parameters.values(), recorded["param_sums"].tolist(), strict=True):
            per_element = advice["param_sum_per_element_atol"] * parameter.numel()
            assert parameter.double().sum().item() == pytest.approx(total, abs=per_element)
            assert parameter.double().abs().sum().item() == pytest.approx(absolute, abs=per_element)
    final = {key.removeprefix("param."): value for key, value in case.update(case.updates - 1).items() if "." in key}
    assert len(final) >= 5
    for key, recorded in final.items():
        close(parameters[key], recorded, atol=advice["param_values_atol_times_lr"] * case.meta["optimizer"]["lr"])


@pytest.mark.parametrize("name", CASES)
def test_noising_and_target_are_those_of_the_script(name, tmp_path):
    case = Case(name, tmp_path)
    recorded, ours = case.micro(0), case.denoising(0)
    close(ours.noisy, recorded["noisy_latents"], atol=1e-6)
    close(ours.target, recorded["target"], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name != "diffusers_lora_sdxl"])
def test_latents_of_the_pixels_are_those_of_the_script(name, tmp_path):
    # diffusers' SDXL script resizes tensors, so that its pixels are no bytes.
    case = Case(name, tmp_path)
    recorded, family = case.micro(0), case.policy.family
    mean, std = family.encode_images(recorded["pixel_values_u8"])
    ours = family.scale_latents(mean + std * recorded["vae_eps"])
    close(ours, recorded["latents"], atol=case.tolerance["latents_atol"])


@pytest.mark.parametrize("name", CASES)
def test_captions_are_encoded_as_the_script_did(name, tmp_path):
    case = Case(name, tmp_path)
    atol = case.tolerance["encoder_hidden_states_atol"]
    checked = 0
    for index, captions in enumerate(case.meta["captions"]):
        recorded = case.conditioning(case.micro(index))
        captions = captions * (len(recorded["text"]) // len(captions))
        ours = case.policy.family.condition(captions, torch.zeros(len(captions), 6, dtype=torch.int32))
        # SDXL's zeros for a dropped caption are a deviation: see test_deviations.py.
        rows = [row for row, caption in enumerate(captions) if caption or case.config.family.kind == "sd15"]
        for key in ("text", "text_embeds"):
            if key in recorded:
                close(ours[key][rows], recorded[key][rows], atol=atol)
                checked += 1
    assert checked >= len(case.meta["captions"])


def test_captions_and_sides_of_the_data_are_those_of_the_script(tmp_path):
    # Pixels within a few levels, since the script resizes otherwise (test_deviations.py) but mirrors nothing here.
    case = Case("dcpo_sd", tmp_path)
    loaded, recorded, captions = load_rows(case.config.data, tmp_path), case.micro(0), case.meta["captions"][0]
    pixels = recorded["pixel_values_u8"].view(2, 4, 3, 32, 32).float()
    for place, row in enumerate(recorded["rows"].tolist()):
        batch = loaded[row]
        assert [*batch.chosen_captions, *batch.rejected_captions] == [captions[place], captions[4 + place]]
        assert batch.pixels is not None
        assert (batch.pixels[0].float() - pixels[:, place]).abs().mean() < 5
        assert (batch.pixels[0].float() - pixels[:, place].flip(0)).abs().mean() > 10

"""Stable Diffusion 1.x and 2.x: where its parts come from, and what its scheduler says."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from dpo_core.data.encoder import encoder_hash, latent_shape
from dpo_core.families import SD15
from dpo_core.families.autoencoder import load_encoder
from dpo_core.noising import EpsilonNoising, VelocityNoising
from dpo_core.policy import Policy, PolicySection
from tests.tiny_models import make_tiny_sd, make_tiny_sdxl

CPU = torch.device("cpu")


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model of the same architecture with other weights."""
    return make_tiny_sd(tmp_path_factory.mktemp("other"), seed=1)


def test_text_is_what_diffusers_own_pipeline_encodes(tiny_sd):
    told = SD15(model=str(tiny_sd)).load(CPU, "fp32").condition(["a red cat"], torch.zeros(1, 6, dtype=torch.int32))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    expected, _ = pipeline.encode_prompt("a red cat", CPU, 1, False)
    torch.testing.assert_close(told["text"], expected)


@pytest.mark.parametrize("place", ["", "unet"])
def test_policy_and_reference_start_from_the_separate_denoiser(tiny_sd, other, place):
    family = SD15(model=str(tiny_sd), denoiser=str(other / place)).load(CPU, "fp32")
    policy = Policy(PolicySection(), family, CPU, "fp32", 0, needs_reference=True)
    assert policy.frozen is not None
    wanted = UNet2DConditionModel.from_pretrained(other, subfolder="unet").state_dict()
    for model in (policy.model, policy.frozen):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(wanted["conv_in.weight"], load_file(weights_of(tiny_sd))["conv_in.weight"])


def weights_of(model):
    return model / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("place", ["", "vae"])
def test_images_go_through_the_separate_autoencoder_in_training_in_caches_and_in_the_export(
    tiny_sd, other, tmp_path, place
):
    config = SD15(model=str(tiny_sd), vae=str(other / place))
    wanted = SD15(model=str(other)).load(CPU, "fp32").encode_images(pixels())
    family = config.load(CPU, "fp32")
    for found in (family.encode_images(pixels()), load_encoder(config, CPU, "fp32").encode_images(pixels())):
        assert torch.equal(found[0], wanted[0])
    assert encoder_hash(config) == encoder_hash(SD15(model=str(other))) != encoder_hash(SD15(model=str(tiny_sd)))
    assert latent_shape(config, 16) == (4, 8, 8)
    family.export(tmp_path, torch.float32, lora=False)
    exported, own = (
        AutoencoderKL.from_pretrained(folder, subfolder="vae").state_dict() for folder in (tmp_path, other)
    )
    assert all(torch.equal(exported[name], own[name]) for name in own)


def test_a_denoiser_of_another_architecture_and_missing_parts_are_refused_by_the_name_of_the_field(tiny_sd, tmp_path):
    xl = make_tiny_sdxl(tmp_path / "xl")
    for field, value in (("denoiser", str(xl)), ("denoiser", str(tmp_path)), ("vae", str(tmp_path / "nowhere"))):
        with pytest.raises(ValueError, match=rf"^family\.{field}: .*{value}"):
            SD15.model_validate({"model": str(tiny_sd), field: value}).load(CPU, "fp32")
    with pytest.raises(ValueError, match=r"^family\.vae: .*nowhere"):
        latent_shape(SD15(model=str(tiny_sd), vae=str(tmp_path / "nowhere")), 16)


def test_the_scheduler_says_what_is_predicted(tmp_path, tiny_sd):
    velocity = SD15(model=str(make_tiny_sd(tmp_path, prediction_type="v_prediction"))).load(CPU, "fp32").noising
    assert type(velocity) is VelocityNoising
    assert type(SD15(model=str(tiny_sd)).load(CPU, "fp32").noising) is EpsilonNoising


def test_the_last_timestep_is_pure_noise_when_asked_for(tiny_sd):
    as_saved, rescaled = (
        SD15(model=str(tiny_sd), zero_terminal_snr=wanted).load(CPU, "fp32").noising for wanted in (None, True)
    )
    last = torch.tensor([999])
    assert as_saved.snr(last).item() == pytest.approx(0.0047, abs=2e-4)
    assert rescaled.snr(last).item() == 0.0
    latents, noise = torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 2.0)
    assert torch.equal(rescaled.add_noise(latents, noise, last), noise)

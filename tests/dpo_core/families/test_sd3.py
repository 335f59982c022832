from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from dpo_core.families import SD3
from dpo_core.families.sd3 import LoadedSD3
from tests.tiny_flow_models import T5_WIDTH, make_tiny_sd3

CPU = torch.device("cpu")
NOWHERE = torch.zeros(2, 6, dtype=torch.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(make_tiny_sd3(tmp_path_factory.mktemp("sd3")))


def load(model: str, **fields: Any) -> LoadedSD3:
    fields.setdefault("t5_max_length", 12)
    return SD3(model=model, **fields).load(CPU, "fp32")


def test_latents_are_shifted_before_they_are_scaled(model):
    family = load(model)
    assert (family.images.vae.config.shift_factor, family.images.vae.config.scaling_factor) == (0.06, 1.5)
    latents = torch.full((1, 16, 2, 2), 2.06)
    torch.testing.assert_close(family.scale_latents(latents), torch.full((1, 16, 2, 2), 3.0))


def test_the_schedulers_shift_is_used_unless_another_is_given(model):
    assert load(model).noising.shift == 3.0
    assert load(model, shift=1.5).noising.shift == 1.5


def test_every_projection_of_image_and_text_gets_an_adapter(model):
    family = load(model)
    adapted = {
        name.removeprefix("transformer_blocks.0.")
        for name, module in family.denoiser.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith("transformer_blocks.0.")
        and any(name.endswith(f".{target}") for target in family.lora_targets)
    }
    joint = {f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    text = {f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
    assert adapted == joint | text | {name.replace("attn.", "attn2.") for name in joint}


def test_text_is_both_clips_side_by_side_padded_to_the_width_of_t5_then_t5(model):
    text = load(model).condition(["a cat", "a dog"], NOWHERE)["text"]
    assert text.shape == (2, 16 + 12, T5_WIDTH)
    assert text[:, :16, :24].any(dim=-1).all()
    assert not text[:, :16, 24:].any()
    assert text[:, 16:].any(dim=-1).all()
    assert not torch.equal(text[0, :16], text[1, :16])
    assert not torch.equal(text[0, 16:], text[1, 16:])


def test_without_t5_no_t5_is_loaded_and_its_states_are_zeros(model):
    family, whole = load(model, t5=False), load(model)
    assert family.parts["text_encoder_3"] is None
    text, expected = (one.condition(["a cat", "a dog"], NOWHERE)["text"] for one in (family, whole))
    assert torch.equal(text[:, :16], expected[:, :16])
    assert not text[:, 16:].any()
    assert text.shape == expected.shape


def test_a_model_that_has_no_t5_is_loaded_and_exported_where_none_is_asked_for(tmp_path):
    model = str(make_tiny_sd3(tmp_path / "base", t5=False))
    with pytest.raises(ValueError, match=r"family.t5: .*no T5 encoder; set family.t5=false"):
        load(model)
    family = load(model, t5=False)
    family.export(tmp_path / "export", torch.float32, lora=False)
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "export", text_encoder_3=None, tokenizer_3=None)
    assert all(
        torch.equal(a, b) for a, b in zip(pipeline.vae.parameters(), family.images.vae.parameters(), strict=True)
    )


def test_a_caption_is_encoded_the_same_in_any_batch(model):
    together = load(model).condition(["a cat", "a dog"], NOWHERE)
    alone = load(model).condition(["a dog"], NOWHERE[:1])
    for name in ("text", "pooled"):
        assert torch.equal(together[name][1:], alone[name])


def test_adapters_of_both_clip_encoders_are_trained_through_and_reload_exactly(model, tmp_path):
    family = load(model)
    plain = family.condition(["a cat"], NOWHERE[:1])
    torch.manual_seed(3)
    for encoder in family.text_encoders:
        encoder.add_adapter(  # pyright: ignore[reportCallIssue]
            LoraConfig(r=2, lora_alpha=5, init_lora_weights=False, target_modules=["q_proj", "v_proj"]), "default"
        )
    told = family.condition(["a cat"], NOWHERE[:1], remember=False)
    (told["text"].sum() + told["pooled"].sum()).backward()
    for encoder in family.text_encoders:
        gradients = [p.grad for name, p in encoder.named_parameters() if "lora_A" in name]
        assert any(gradient is not None and gradient.any() for gradient in gradients)
    assert not torch.equal(told["pooled"], plain["pooled"])
    assert torch.equal(family.condition(["a cat"], NOWHERE[:1])["pooled"], plain["pooled"])

    family.export(tmp_path, torch.float32, lora=True)
    pipeline: Any = DiffusionPipeline.from_pretrained(model)
    pipeline.load_lora_weights(tmp_path)
    text, _, pooled, _ = pipeline.encode_prompt(
        "a cat", None, None, do_classifier_free_guidance=False, max_sequence_length=12
    )
    torch.testing.assert_close(text, told["text"], rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, told["pooled"], rtol=0, atol=1e-6)

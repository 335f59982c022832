import json
from dataclasses import asdict
from typing import get_args

import pytest

from eval.generate import SamplerSection
from eval.presets import PRESETS, PlannedSampler, PresetName, family_preset


def model_of(folder, kind, transformer=None):
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (folder / "transformer" / "config.json").write_text(json.dumps(transformer or {}))
    return folder


@pytest.mark.parametrize(
    ("kind", "transformer", "expected"),
    [
        ("StableDiffusionPipeline", {}, ("pndm", 50, 7.5)),
        ("StableDiffusionXLPipeline", {}, ("euler", 50, 5.0)),
        ("StableDiffusion3Pipeline", {}, ("model", 28, 7.0)),
        ("StableDiffusion3Pipeline", {"qk_norm": "rms_norm", "num_layers": 24}, ("model", 40, 4.5)),
        ("StableDiffusion3Pipeline", {"qk_norm": "rms_norm", "num_layers": 38}, ("model", 28, 3.5)),
        ("FluxPipeline", {"guidance_embeds": True}, ("model", 50, 3.5)),
        ("FluxPipeline", {"guidance_embeds": False}, ("model", 4, 0.0)),
    ],
)
def test_a_family_is_drawn_with_its_published_settings(tmp_path, kind, transformer, expected):
    sampler = PlannedSampler().for_model(model_of(tmp_path / "m", kind, transformer))
    assert (sampler.scheduler, sampler.num_inference_steps, sampler.guidance_scale) == expected


def test_what_is_given_wins_over_the_preset_and_the_rest_comes_from_it(tmp_path):
    folder = model_of(tmp_path / "m", "StableDiffusionXLPipeline")
    sampler = PlannedSampler(num_inference_steps=9, height=512, negative_prompt="x").for_model(folder)
    assert sampler == SamplerSection(
        scheduler="euler", num_inference_steps=9, guidance_scale=5.0, height=512, width=1024, negative_prompt="x"
    )


def test_a_preset_by_name_needs_no_model_and_geneval_guides_by_nine():
    assert PlannedSampler(preset="geneval").for_model().guidance_scale == 9.0
    assert get_args(PresetName)[1:] == tuple(PRESETS)


def test_settings_given_in_full_need_neither_preset_nor_model():
    given = PlannedSampler(scheduler="ddim", num_inference_steps=2, guidance_scale=1.0)
    assert given.for_model("no/such").num_inference_steps == 2


def test_an_unknown_family_asks_for_the_settings(tmp_path):
    with pytest.raises(ValueError, match="no preset for KandinskyPipeline"):
        family_preset(model_of(tmp_path / "m", "KandinskyPipeline"))
    with pytest.raises(ValueError, match=r"cannot read model_index\.json of 'owner/unknown'"):
        family_preset("owner/unknown")


def test_a_resolved_plan_read_back_resolves_to_the_same(tmp_path):
    folder = model_of(tmp_path / "m", "StableDiffusionPipeline")
    planned = PlannedSampler(guidance_scale=3.0)
    again = PlannedSampler.model_validate(planned.model_dump())
    assert again.for_model(folder) == planned.for_model(folder)
    assert asdict(PRESETS["sd15"])["num_inference_steps"] == 50

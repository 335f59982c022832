import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from eval.generate import (
    SamplerSection,
    generate,
    generate_to_folder,
    make_missing,
    noise_seed,
    plan_images,
    use_scheduler,
)

PROMPTS = ["a red circle", "a blue square above a green triangle", "", "a red circle"]
SEEDS = [3, 4, 5, 6]
FAST = {"num_inference_steps": 3, "guidance_scale": 4.0}


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in images])


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp", "euler", "pndm"])
def test_an_image_does_not_depend_on_its_batch_or_place(tiny, scheduler):
    use_scheduler(tiny, scheduler)
    together = pixels(generate(tiny, PROMPTS, SEEDS, **FAST))
    backwards = pixels(generate(tiny, PROMPTS[::-1], SEEDS[::-1], **FAST))[::-1]
    alone = pixels([generate(tiny, [p], [s], **FAST)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)])
    assert np.abs(together - backwards).max() <= 2
    assert np.abs(together - alone).max() <= 2


def test_the_start_noise_is_bit_equal_in_any_batch():
    def noise(pairs):
        generators = [torch.Generator("cpu").manual_seed(noise_seed(p, s)) for p, s in pairs]
        return randn_tensor((len(pairs), 4, 8, 8), generator=generators, dtype=torch.float32)

    pairs = list(zip(PROMPTS, SEEDS, strict=True))
    assert torch.equal(noise(pairs)[2:], torch.cat([noise([pair]) for pair in pairs[2:]]))


def test_prompt_and_seed_both_change_the_image(tiny):
    one, other_seed, other_prompt, same = pixels(generate(tiny, ["a", "a", "b", "a"], [0, 1, 0, 0], **FAST))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other_seed)
    assert not np.array_equal(one, other_prompt)


def test_no_prompts_give_no_images_and_missing_seeds_are_refused(tiny):
    assert generate(tiny, [], [], **FAST) == []
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        generate(tiny, ["a", "b"], [0], **FAST)


def test_negative_prompt_and_size_reach_the_pipeline(tiny):
    (plain,) = generate(tiny, ["a"], [0], **FAST)
    (negative,) = generate(tiny, ["a"], [0], negative_prompt="zzz", height=64, width=40, **FAST)
    assert plain.size == (16, 16)
    assert negative.size == (40, 64)
    (other,) = generate(tiny, ["a"], [0], negative_prompt="zzz", **FAST)
    assert not np.array_equal(pixels([plain]), pixels([other]))


def test_an_unknown_scheduler_is_refused_and_ddim_does_not_clip(tiny):
    use_scheduler(tiny, "ddim")
    assert tiny.scheduler.config["clip_sample"] is False
    with pytest.raises(ValueError, match="'heun'; allowed: model, ddim"):
        use_scheduler(tiny, "heun")  # pyright: ignore[reportArgumentType]


def test_manifest_has_a_row_for_every_prompt_and_seed(tiny_folder, tmp_path):
    sampler = SamplerSection(num_inference_steps=2, batch_size=3)
    manifest = generate_to_folder(tiny_folder, ["a", "b"], [7, 8], tmp_path, sampler, model="base")
    rows = pq.read_table(manifest).to_pylist()
    assert [(row["model"], row["prompt"], row["prompt_index"], row["seed"]) for row in rows] == [
        ("base", "a", 0, 7),
        ("base", "a", 0, 8),
        ("base", "b", 1, 7),
        ("base", "b", 1, 8),
    ]
    assert all(Image.open(tmp_path / row["file"]).size == (16, 16) for row in rows)
    assert rows[0]["num_inference_steps"] == 2
    assert rows[0]["guidance_scale"] == 7.5
    assert len(rows[0]["weights"]) == 16


def test_only_missing_images_are_drawn(tiny, tiny_folder, tmp_path):
    sampler = SamplerSection(num_inference_steps=1, batch_size=2)
    rows = plan_images("base", "abc", ["a", "b", "c"], [0], sampler)
    assert make_missing(tiny, rows, sampler, tmp_path) == 3
    kept = (tmp_path / rows[0]["file"]).stat().st_mtime_ns
    (tmp_path / rows[1]["file"]).unlink()
    assert make_missing(tiny, rows, sampler, tmp_path) == 1
    assert (tmp_path / rows[0]["file"]).stat().st_mtime_ns == kept
    assert not list(tmp_path.rglob("*.part"))


def test_changed_settings_or_weights_never_reuse_a_file():
    def file(weights="abc", **settings):
        return plan_images("base", weights, ["a"], [0], SamplerSection(**settings))[0]["file"]

    assert file(batch_size=3) == file()
    assert len({file(), file("abd"), file(num_inference_steps=49), file(scheduler="euler")}) == 4

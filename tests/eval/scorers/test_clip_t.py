import json

import open_clip
import pytest
import torch

from eval.scorers.base import clip_pixels
from eval.scorers.clip import CLIPScore
from eval.scorers.clip_i import ClipI
from eval.scorers.clip_t import ClipT
from tests.eval.scorers.plain_clip import image_features, text_features

CONFIG = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """ViT-B/32 of OpenAI in small: a folder for open_clip, and its tensors."""
    folder = tmp_path_factory.mktemp("clip_b")
    torch.manual_seed(0)
    state = open_clip.CLIP(**CONFIG["model_cfg"]).state_dict()
    state = {name: part + 0.1 * torch.randn_like(part) * (part.ndim > 0) for name, part in state.items()}
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}", state


def quick_gelu(x):
    return x * (1.702 * x).sigmoid()


def by_hand(state, images, texts):
    seen = image_features(clip_pixels(images, 32), state, 2, quick_gelu)
    said = text_features(open_clip.tokenize(texts), state, 2, quick_gelu)
    return (torch.nn.functional.normalize(part, dim=-1) for part in (seen, said))


def test_clip_t_is_the_cosine_of_a_clip_written_out_by_hand(tiny, images, prompts):
    seen, said = by_hand(tiny[1], images, prompts)
    rows = ClipT(model=tiny[0], weights=None).load()(images, prompts)
    assert [row["clip_t"] for row in rows] == pytest.approx((seen * said).sum(-1).tolist(), abs=3e-6)


def test_clip_i_is_the_mean_cosine_with_the_references(tiny, images):
    seen, _ = by_hand(tiny[1], images, ["x"])
    rows = ClipI(model=tiny[0], weights=None).load()(images[:2], ["", ""], [images[2:], images[3:]])
    expected = [float((seen[2:] @ seen[0]).mean()), float(seen[3] @ seen[1])]
    assert [row["clip_i"] for row in rows] == pytest.approx(expected, abs=3e-6)


def test_hessels_score_is_clipped_and_weighted(tiny, images, prompts, tmp_path):
    texts = [f"A photo depicts {prompt}" for prompt in prompts]
    seen, said = by_hand(tiny[1], images, texts)
    cosine = (seen * said).sum(-1)
    turned = tiny[1] | {"text_projection": -tiny[1]["text_projection"]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.save(turned, tmp_path / "open_clip_pytorch_model.bin")
    rows = CLIPScore(variant="hessel", model=f"local-dir:{tmp_path}").load()(images, prompts)
    assert [row["clip"] for row in rows] == pytest.approx((-2.5 * cosine).clamp(min=0).tolist(), abs=1e-5)
    assert min(row["clip"] for row in rows) == 0
    rows = CLIPScore(variant="hessel", model=tiny[0]).load()(images, prompts)
    assert [row["clip"] for row in rows] == pytest.approx((2.5 * cosine.clamp(min=0)).tolist(), abs=1e-5)
    below = CLIPScore(variant="l14", model=tiny[0], prefix="A photo depicts ").load()(images, prompts)
    assert [row["clip"] for row in below] == pytest.approx((100 * cosine).tolist(), abs=3e-4)


def test_scores_do_not_depend_on_the_batch(tiny, images, prompts, same_alone):
    several = [images[:2], images[1:], images[2:], images[:1] + images[3:]]
    same_alone(ClipT(model=tiny[0], weights=None).load(), images, prompts, within=3e-6)
    same_alone(ClipI(model=tiny[0], weights=None).load(), images, prompts, several, within=3e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_towers_agree(tiny, images, prompts, dtype):
    exact = ClipT(model=tiny[0], weights=None).load()(images, prompts)
    rows = ClipT(model=tiny[0], weights=None, dtype=dtype).load()(images, prompts)
    for row, other in zip(rows, exact, strict=True):
        assert row["clip_t"] == pytest.approx(other["clip_t"], abs=2e-2)


def test_variants_are_told_apart():
    l14, h14, hessel = (CLIPScore(variant=name) for name in ("l14", "h14", "hessel"))
    assert [scorer.label for scorer in (l14, h14, hessel)] == ["clip", "clip-h14", "clip-hessel"]
    assert h14.places() == ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]
    assert hessel.identity().scale == "2.5 x max(cosine, 0)"
    assert len({scorer.identity().variant for scorer in (l14, h14, hessel)}) == 3
    assert ClipI().needs_references
    assert not ClipT().needs_references


def test_openai_weights_with_the_wrong_activation_are_refused():
    for scorer in (ClipT(model="ViT-B-32"), ClipI(model="ViT-B-32")):
        with pytest.raises(ValueError, match="allowed: ViT-B-32-quickgelu"):
            scorer.load()

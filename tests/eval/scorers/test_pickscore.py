import math

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from eval.scorers import pickscore
from eval.scorers.base import clip_pixels
from eval.scorers.pickscore import PickScore
from tests.eval.scorers.plain_clip import from_transformers, image_features, text_features
from tests.tiny_models import LENGTH, byte_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pickscore")
    tokenizer = byte_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "hidden_act": "gelu",
        "projection_dim": 24,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = sizes | {"image_size": 28, "patch_size": 14, "hidden_act": "gelu", "projection_dim": 24}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, logit_scale_init_value=4.1)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.3 * torch.randn_like(parameter) if parameter.ndim else parameter)
    model.save_pretrained(folder)
    return folder, model, tokenizer


def score_of(folder, **settings):
    return PickScore(model=str(folder), tokenizer=str(folder), **settings).load()


def test_score_is_the_scaled_cosine_of_a_clip_written_out_by_hand(tiny, images, prompts):
    folder, model, tokenizer = tiny
    state = from_transformers(model.state_dict())
    words = tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    seen, said = image_features(clip_pixels(images, 28), state, 2), text_features(words, state, 2)
    cosine = torch.cosine_similarity(seen, said)
    assert cosine.std() > 0.02
    rows = score_of(folder)(images, prompts)
    assert [row["pickscore"] for row in rows] == pytest.approx((math.exp(4.1) * cosine).tolist(), abs=2e-4)
    rows = score_of(folder, unit="cosine")(images, prompts)
    assert [row["pickscore"] for row in rows] == pytest.approx(cosine.tolist(), abs=3e-6)


def test_score_does_not_depend_on_the_batch(tiny, images, prompts, same_alone):
    same_alone(score_of(tiny[0]), images, prompts, within=2e-4)


def test_half_precision_towers_keep_a_float32_cosine(tiny, images, prompts):
    exact = score_of(tiny[0], unit="cosine")(images, prompts)
    for dtype, within in (("bfloat16", 2e-2), ("float16", 3e-3)):
        rows = score_of(tiny[0], unit="cosine", dtype=dtype)(images, prompts)
        for row, other in zip(rows, exact, strict=True):
            assert row["pickscore"] == pytest.approx(other["pickscore"], abs=within)
        coarse = torch.tensor([row["pickscore"] for row in rows])
        assert (coarse.bfloat16().float() != coarse).all()


def test_a_checkpoint_file_scores_as_its_folder_does(tiny, images, prompts, tmp_path, monkeypatch):
    folder, model, _ = tiny
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}, tmp_path / "pick.safetensors")
    monkeypatch.setattr(pickscore, "vit_h", lambda: CLIPModel(model.config))
    scorer = PickScore(model=str(tmp_path / "pick.safetensors"), tokenizer=str(folder))
    assert scorer.load()(images, prompts) == score_of(folder)(images, prompts)


def test_identity_tells_the_unit_and_the_weights(tiny):
    logit, cosine = (PickScore(model=str(tiny[0]), unit=unit).identity() for unit in ("logit", "cosine"))
    assert (logit.variant, logit.scale, cosine.scale) == ("pickscore-v1", "exp(logit scale) x cosine", "cosine")
    assert len(logit.weights) == 16
    assert logit.weights == cosine.weights


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path, tiny):
    with pytest.raises(ValueError, match="cannot load CLIPModel: no folder"):
        PickScore(model=str(tmp_path / "nothing")).load()
    with pytest.raises(ValueError, match="cannot load the tokenizer"):
        PickScore(model=str(tiny[0]), tokenizer=str(tmp_path / "nothing")).load()

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from eval.adapters import attach, mean_tokens, trained_encoder, view
from eval.evaluation import evaluate
from eval.models import load_pipeline, model_hash
from eval.plan import ComparisonPlan
from eval.sources import find_source
from eval.subjects import SubjectSection, load_subject_pipeline
from tests.eval.tiny_scorers import tiny_scorers
from tests.tiny_ip_adapter import make_tiny_ip_adapter

PHOTOS = Path(__file__).parents[1] / "assets" / "dreambench"
PROMPTS = [("a can in the snow", "can"), ("a red can", "can"), ("a red teapot", "teapot"), ("a teapot", "teapot")]


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny):
    """(adapter file, image encoder)."""
    return make_tiny_ip_adapter(tmp_path_factory.mktemp("adapter"), tiny.unet)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_folder, given) -> Path:
    """A folder as training exports it: other weights of the adapter, and where its base and encoder lie."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("exported")
    save_file({name: 2 * tensor for name, tensor in load_file(given[0]).items()}, folder / "ip_adapter.safetensors")
    config = {"policy": {"ip_adapter": {"image_encoder": str(given[1])}}}
    facts = {"base_model": str(tiny_folder), "kind": "ip_adapter", "config": config}
    (folder / "provenance.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory, tiny_folder, given, exported) -> ComparisonPlan:
    folder = tmp_path_factory.mktemp("plan")
    lines = [json.dumps({"prompt": text, "subject": subject}) for text, subject in PROMPTS]
    (folder / "things.jsonl").write_text("\n".join(lines))
    scorers = [one for one in tiny_scorers(folder / "scorers") if one["kind"] == "clip_t"]
    return ComparisonPlan.model_validate(
        {
            "models": {"base": str(tiny_folder), "tuned": str(exported)},
            "adapters": {"base": {"path": str(given[0]), "image_encoder": str(given[1])}},
            "photos": {"references": str(PHOTOS)},
            "prompts": str(folder / "things.jsonl"),
            "sampler": {"scheduler": "model", "num_inference_steps": 1, "guidance_scale": 5.0, "batch_size": 3},
            "scorers": [*scorers, scorers[0] | {"kind": "clip_i"}],
        }
    )


def drawn(plan, folder):
    evaluate(plan, folder)
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    return {(row["model"], row["prompt"]): np.asarray(Image.open(folder / row["file"])).astype(int) for row in rows}


def test_adapters_are_compared_with_photos_and_a_subject_is_one_unit(plan, tmp_path):
    comparison = evaluate(plan, tmp_path)
    d = comparison.difference("tuned", "clip_i")
    assert (d.prompts, d.images, comparison.unit) == (2, 4, "subject")
    values = {
        (row["model"], row["prompt_index"]): row["score"] for row in comparison.scores if row["scorer"] == "clip_i"
    }
    by_hand = np.mean([values["tuned", i] - values["base", i] for i in range(4)])
    assert d.delta == pytest.approx(by_hand)
    assert comparison.weights["tuned"] != comparison.weights["base"]


def test_the_setting_the_photos_and_the_adapter_all_change_the_image(plan, tmp_path):
    first = drawn(plan, tmp_path / "first")
    one_photo = drawn(
        plan.model_copy(update={"photos": plan.photos.model_copy(update={"setting": "kosmosg"})}), tmp_path / "second"
    )
    unseen = {"base": plan.adapters["base"].model_copy(update={"scale": 0.0})}
    blind = drawn(plan.model_copy(update={"adapters": unseen}), tmp_path / "third")
    for model in ("base", "tuned"):
        assert not np.array_equal(first[model, "a red can"], one_photo[model, "a red can"])
    assert not np.array_equal(first["base", "a red can"], first["tuned", "a red can"])
    assert not np.array_equal(first["base", "a red can"], blind["base", "a red can"])
    assert np.array_equal(first["tuned", "a red can"], blind["tuned", "a red can"])


@pytest.mark.parametrize(("setting", "scale"), [("original", 0.78), ("kosmosg", 0.65)])
def test_both_settings_reach_the_network_of_an_exported_folder(exported, setting, scale):
    section = SubjectSection(model=str(exported), setting=setting, dtype="float32")
    pipelines = [load_subject_pipeline(section, "cpu"), find_source(str(exported), photos_scale=scale).load()]
    for pipeline in pipelines:
        shown = {tuple(p.scale) for p in pipeline.unet.attn_processors.values() if hasattr(p, "to_k_ip")}
        assert shown == {(scale,)}
    one, other = (list(pipeline.unet.state_dict().values()) for pipeline in pipelines)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_plain_adapter_reads_the_embedding_and_sees_nothing_as_diffusers_does(tmp_path, tiny, tiny_folder):
    adapter, encoder = make_tiny_ip_adapter(tmp_path, tiny.unet, plus=False)
    pipeline = load_pipeline(tiny_folder)
    attach(pipeline, str(adapter), str(encoder), 1.0)
    views = [view(PHOTOS / "can" / f"0{i}.jpg") for i in range(2)]
    tokens, nothing = mean_tokens(pipeline, views)
    assert tokens.shape == nothing.shape == (1, 4, tiny.unet.config.cross_attention_dim)
    layer = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
    with torch.no_grad():
        assert torch.allclose(nothing, layer(torch.zeros(1, 8)))


def test_what_is_missing_is_told(plan, exported, tmp_path, tiny_folder):
    with pytest.raises(ValueError, match=r"is an IP-Adapter, which is shown photos: set `photos\.references`"):
        evaluate(plan.model_copy(update={"photos": None}), tmp_path)
    with pytest.raises(ValueError, match="adapters: an IP-Adapter is shown photos"):
        ComparisonPlan.model_validate(plan.model_dump() | {"photos": None})
    with pytest.raises(ValueError, match=r"'a red circle.*' of shapes_heldout has no subject|has no subject"):
        evaluate(plan.model_copy(update={"prompts": ["shapes_heldout"]}), tmp_path)
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say which image encoder"):
        trained_encoder(tmp_path)


def test_the_hash_of_an_adapter_folder_tells_its_weights_and_its_base(exported, tmp_path, tiny_folder):
    first = model_hash(exported)
    assert first != model_hash(tiny_folder)
    provenance = json.loads((exported / "provenance.json").read_text())
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    (tmp_path / "ip_adapter.safetensors").write_bytes((exported / "ip_adapter.safetensors").read_bytes())
    assert model_hash(tmp_path) == first
    (tmp_path / "ip_adapter.safetensors").write_bytes(b"other")
    assert model_hash(tmp_path) != first

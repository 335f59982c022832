"""The full-size networks take the published checkpoints key for key; meta tensors, so without their gigabytes."""

import pytest
from transformers import Qwen2VLConfig

from eval.scorers import dino, hpsv2, hpsv3, imagereward, pickscore
from eval.scorers.weights import empty, load_exactly
from tests.eval.scorers import layouts


def load_hpsv2(state):
    return load_exactly(hpsv2.vit_h(), state, "HPS_v2.1_compressed.pt")


def load_pickscore(state):
    return load_exactly(empty(pickscore.vit_h), state, "PickScore_v1", skip=("position_ids",))


def load_imagereward(state):
    return load_exactly(empty(imagereward.Network), imagereward.renamed(state), "ImageReward.pt")


def load_dino(state):
    return load_exactly(dino.vit_small(), state, "dino_deitsmall16_pretrain.pth")


def load_hpsv3(state):
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        vision_config={"embed_dim": 1280, "hidden_size": 3584, "depth": 32, "num_heads": 16, "mlp_ratio": 4},
    )
    words = len(state["model.embed_tokens.weight"])
    return load_exactly(hpsv3.build(config, words), hpsv3.renamed(state), "HPSv3.safetensors")


CASES = {
    "hpsv2": (load_hpsv2, layouts.open_clip_vit_h, 686, "visual.transformer.resblocks.31.mlp.c_fc.weight"),
    "pickscore": (load_pickscore, layouts.pickscore, 912, "text_model.encoder.layers.23.mlp.fc2.bias"),
    "imagereward": (load_imagereward, layouts.imagereward, 625, "blip.text_encoder.encoder.layer.11.output.dense.bias"),
    "dino": (load_dino, layouts.dino, 150, "blocks.11.attn.qkv.weight"),
    "hpsv3": (load_hpsv3, layouts.hpsv3, 736, "rm_head.5.bias"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_published_layout_fits_and_one_tensor_less_does_not(name):
    load, layout, count, one = CASES[name]
    shapes = layout()
    assert len(shapes) == count
    network = load(layouts.meta(shapes))
    assert all(tensor.is_meta for tensor in network.parameters())
    assert not network.training
    with pytest.raises(ValueError, match="missing: "):
        load(layouts.meta({name: shape for name, shape in shapes.items() if name != one}))
    with pytest.raises(ValueError, match=r"of another shape: .*\(3, 2, 1\) instead of"):
        load(layouts.meta(shapes | {one: (3, 2, 1)}))

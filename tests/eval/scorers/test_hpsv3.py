import math

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoProcessor

from eval.scorers import hpsv3
from eval.scorers.hpsv3 import REWARD_TOKEN, HPSv3, resized, talk
from tests.eval.scorers.tiny_qwen import make_tiny_qwen


def old_name(name):
    for new, old in (("body.visual.", "visual."), ("body.language_model.", "model."), ("head.", "rm_head.")):
        if name.startswith(new):
            return old + name.removeprefix(new)
    raise AssertionError(name)


WORDING = f"Look: {{text_prompt}}\nRate: {REWARD_TOKEN}\nEND\n"


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpsv3, "AREA", 16 * 28 * 28)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A base folder and a checkpoint with the names of the published one."""
    folder = tmp_path_factory.mktemp("hpsv3")
    config = make_tiny_qwen(folder)
    torch.manual_seed(0)
    network = hpsv3.Network(config).eval()
    state = {old_name(name): part + 0.2 * torch.randn_like(part) for name, part in network.state_dict().items()}
    state["lm_head.weight"] = torch.zeros(264, 32)
    save_file(state, folder / "HPSv3.safetensors")
    (folder / "instruction.txt").write_text(WORDING)
    return folder, state


def score_of(folder, **settings):
    instruction = str(folder / "instruction.txt")
    return HPSv3(weights=str(folder), base=str(folder), instruction=instruction, dtype="float32", **settings).load()


def turn(x, angle):
    """Rotates pairs of halves of the last axis, x [n, heads, length, width]."""
    first, second = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rms(x, weight):
    return weight * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


def decode(x, state, *, heads=4, groups=2, base=100.0):
    """Qwen2's decoder with positions 0, 1, 2, ... written out; x [1, length, width]."""
    length, width = x.shape[1], x.shape[2] // heads
    rates = base ** -(torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * rates
    mask = torch.full((length, length), -math.inf).triu(1)
    for i in range(2):
        name = f"model.layers.{i}"
        y = rms(x, state[f"{name}.input_layernorm.weight"])
        q, k, v = (
            F.linear(y, state[f"{name}.self_attn.{p}_proj.weight"], state[f"{name}.self_attn.{p}_proj.bias"])
            .unflatten(-1, (-1, width))
            .transpose(1, 2)
            for p in "qkv"
        )
        k, v = (part.repeat_interleave(heads // groups, 1) for part in (k, v))
        weights = (turn(q, angle) @ turn(k, angle).transpose(-1, -2) / math.sqrt(width) + mask).softmax(-1)
        x = x + F.linear((weights @ v).transpose(1, 2).flatten(2), state[f"{name}.self_attn.o_proj.weight"])
        y = rms(x, state[f"{name}.post_attention_layernorm.weight"])
        gate, up, down = (state[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        x = x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)
    return rms(x, state["model.norm.weight"])


def test_score_is_read_at_the_reward_token_with_plain_positions(tiny, images, prompts):
    folder, state = tiny
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
    token = processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
    network = hpsv3.build(make_tiny_qwen(folder), 264)
    hpsv3.load_exactly(network, hpsv3.renamed(state), "x")
    expected = []
    for image, prompt in zip(images[:2], prompts, strict=False):
        text = processor.apply_chat_template([talk(WORDING, prompt)], tokenize=False)
        given = processor(text=text, images=[resized(image)], return_tensors="pt")
        words, pad = given["input_ids"][0], processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        told = state["model.embed_tokens.weight"][words]
        with torch.no_grad():
            told[words == pad] = network.body.visual(given["pixel_values"], given["image_grid_thw"]).pooler_output
        x = decode(told[None], state)[0][words == token]
        for place in (0, 3, 5):
            x = F.linear(x, state[f"rm_head.{place}.weight"], state[f"rm_head.{place}.bias"])
            x = x.relu() if place < 5 else x
        expected.append(x[0].tolist())
    assert abs(expected[0][0] - expected[1][0]) > 1e-3
    rows = score_of(folder)(images[:2], prompts[:2])
    assert [[row["hps"], row["sigma"]] for row in rows] == [pytest.approx(pair, abs=2e-4) for pair in expected]


def test_score_does_not_depend_on_the_batch(tiny, images, prompts, same_alone):
    same_alone(score_of(tiny[0]), images[:3], prompts[:3], within=2e-4)


def test_an_instruction_is_asked_for_read_and_checked(tmp_path, caplog):
    with pytest.raises(ValueError, match="instruction is not set"):
        HPSv3().load()
    file = tmp_path / "instruction.txt"
    file.write_text("Rate {text_prompt}")
    with pytest.raises(ValueError, match=r"must hold <.Reward.> once, it is there 0 times"):
        hpsv3.read_instruction(str(file))
    file.write_text(WORDING)
    assert hpsv3.read_instruction(str(file)) == WORDING
    assert "not the published instruction" in caplog.text


def test_a_prompt_with_braces_is_asked_as_it_is():
    assert talk("Is it {text_prompt}?", "a {b} {0}")[0]["content"][1]["text"] == "Is it a {b} {0}?"


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (448, 448)), ((1024, 1024), (448, 448)), ((1024, 512), (616, 308)), ((200, 300), (392, 560))],
)
def test_images_are_brought_to_the_published_area(size, expected, monkeypatch):
    monkeypatch.setattr(hpsv3, "AREA", 256 * 28 * 28)
    assert resized(Image.new("RGB", size)).size == expected


def test_a_checkpoint_without_the_reward_word_is_refused(tiny, tmp_path):
    state = dict(tiny[1])
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:263].clone()
    save_file(state, tmp_path / "HPSv3.safetensors")
    with pytest.raises(ValueError, match=r"has embeddings of 263 words, but <\|Reward\|> is 263"):
        HPSv3(weights=str(tmp_path), base=str(tiny[0]), instruction=str(tiny[0] / "instruction.txt")).load()

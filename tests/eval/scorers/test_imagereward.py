import pytest
import torch
from transformers import BertTokenizer

from eval.scorers import imagereward
from eval.scorers.base import clip_pixels
from eval.scorers.imagereward import ImageReward
from tests.eval.scorers import layouts, plain_blip

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "wall", "two", "dogs", "on", "beach", ",", "oil"]
WORDS += ["painting", "x", "many", "words", "later"]


@pytest.fixture(scope="module", autouse=True)
def tiny_architecture():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagereward, "HEAD", (32, 20, 12, 8, 4, 1))
        patch.setattr(
            imagereward,
            "VISION",
            imagereward.VISION
            | {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
            | {"image_size": 32},
        )
        patch.setattr(
            imagereward,
            "TEXT",
            imagereward.TEXT
            | {"vocab_size": 40, "hidden_size": 32, "encoder_hidden_size": 48, "intermediate_size": 64}
            | {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
        )
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The published layout, small: a folder with checkpoint and tokenizer, and the checkpoint's tensors."""
    folder = tmp_path_factory.mktemp("imagereward")
    shapes = layouts.vit("blip.visual_encoder.", 2, 48, 5)
    shapes |= layouts.bert("blip.text_encoder.", layers=2, width=32, inner=64, seen=48, words=40, places=64)
    shapes |= layouts.both("blip.vision_proj", 16, 48) | layouts.both("blip.text_proj", 16, 32)
    for place, after, before in ((0, 20, 32), (2, 12, 20), (4, 8, 12), (6, 4, 8), (7, 1, 4)):
        shapes |= layouts.both(f"mlp.layers.{place}", after, before)
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state |= {name: part + 1 for name, part in state.items() if "norm" in name.lower() and name.endswith(".weight")}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(state, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return folder, state, tokenizer


def score_of(folder, **settings):
    return ImageReward(weights=str(folder), tokenizer=str(folder), **settings).load()


def test_score_is_the_reward_of_a_network_written_out_by_hand(tiny, images, prompts):
    folder, state, tokenizer = tiny
    words = tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    assert (words.attention_mask.sum(1) == 35).any()
    expected = plain_blip.reward(
        clip_pixels(images, 32), words.input_ids, words.attention_mask, state, heads=(4, 4), depth=(2, 2)
    )
    assert expected.std() > 0.05
    rows = score_of(folder)(images, prompts)
    assert [row["reward"] for row in rows] == pytest.approx(expected.tolist(), abs=2e-4)


def test_score_does_not_depend_on_the_batch(tiny, images, prompts, same_alone):
    same_alone(score_of(tiny[0]), images, prompts, within=2e-4)


def test_every_word_is_read_both_ways_but_none_after_the_thirty_fifth(tiny, images):
    score = score_of(tiny[0])
    short, changed = score(images[:1] * 2, ["a red wall", "a red beach"])
    assert short != changed
    long = "many words " * 20
    assert score(images[:1], [long]) == score(images[:1], [long + "later later"])


def test_half_precision_encoders_agree(tiny, images, prompts):
    exact = score_of(tiny[0])(images, prompts)
    for row, other in zip(score_of(tiny[0], dtype="bfloat16")(images, prompts), exact, strict=True):
        assert row["reward"] == pytest.approx(other["reward"], abs=0.3)


def test_a_checkpoint_without_its_head_is_refused(tiny, tmp_path):
    torch.save({name: part for name, part in tiny[1].items() if "mlp.layers" not in name}, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match=r"does not fit Network: missing: head\.0\.bias"):
        ImageReward(weights=str(tmp_path), tokenizer=str(tiny[0])).load()

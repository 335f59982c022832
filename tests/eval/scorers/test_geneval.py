from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from eval.scorers.geneval import COLOURS, Colourist, GenEval, cut_out, things
from eval.scorers.geneval_rules import Thing, requirements
from tests.eval.scorers.test_clip_t import tiny as tiny_clip  # noqa: F401

SWIN: dict[str, Any] = {
    "image_size": 32,
    "embed_dim": 8,
    "depths": [1] * 4,
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
CLASSES = sorted({wish["class"] for row in requirements().values() for wish in row["include"]})


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A Mask2Former of the same architecture, tiny and random."""
    folder = tmp_path_factory.mktemp("mask2former")
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=1,
        decoder_layers=2, dim_feedforward=16, num_attention_heads=2, num_queries=10,
        id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)},
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(60)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_instances_are_read_off_as_the_authors_do():
    classes = torch.full((1, 2, 4), -20.0)
    classes[0, 0, 1], classes[0, 1, 3] = 20.0, 20.0
    masks = torch.full((1, 2, 4, 4), -8.0)
    masks[0, 0, 1:3, 2:] = torch.logit(torch.tensor(0.8))
    output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    found = things(output, (4, 4), {0: "cat", 1: "dog", 2: "cow"})
    dog = max(found, key=lambda thing: thing.confidence)
    assert (dog.name, dog.box) == ("dog", (2.0, 1.0, 4.0, 3.0))
    assert dog.confidence == pytest.approx(0.8)
    assert dog.mask.sum() == 4
    # The second query says "nothing": the other classes are left with no probability.
    assert all(thing.confidence < 1e-6 for thing in found if thing is not dog)


def test_masks_grow_to_the_size_of_the_image():
    classes = torch.zeros(1, 1, 2)
    masks = torch.full((1, 1, 4, 4), -1.0)
    masks[0, 0, :, :2] = 1.0
    (found,) = things(SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks), (80, 40), {0: "cat"})
    assert found.mask.shape == (40, 80)
    assert found.box == (0.0, 0.0, 40.0, 40.0)


def test_an_object_is_cut_out_on_grey():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:4] = True
    piece = cut_out(Image.new("RGB", (8, 8), "red"), Thing("cow", 1.0, (2, 2, 6, 6), mask))
    assert piece.size == (4, 4)
    assert (piece.getpixel((0, 0)), piece.getpixel((3, 3))) == ((255, 0, 0), (153, 153, 153))


def test_the_colour_is_the_nearest_of_three_sentences_each():
    texts = {}

    def read(lines):
        texts["read"] = lines
        return torch.nn.functional.one_hot(torch.arange(len(lines)) // 3, 10).float()

    def see(pieces):
        return torch.nn.functional.one_hot(torch.tensor([4, 0])[: len(pieces)], 10).float()

    colourist = Colourist(cast(Any, SimpleNamespace(read=read, see=see)))
    boxes = [Thing("cow", 1.0, (0, 0, 4, 4)), Thing("cow", 0.9, (4, 4, 8, 8))]
    assert colourist(Image.new("RGB", (8, 8)), boxes, "cow") == ["blue", "red"]
    assert texts["read"][:3] == ["a photo of a red cow", "a photo of a red-colored cow", "a photo of a red object"]
    assert len(texts["read"]) == 3 * len(COLOURS)


def test_the_whole_chain_runs_and_does_not_depend_on_the_batch(detector, tiny_clip, images):  # noqa: F811
    scorer = GenEval(detector=str(detector), clip=tiny_clip[0], clip_weights=None)
    score = scorer.load()
    prompts = ["a photo of a bench", "a photo of two clocks", "a photo of a truck left of a refrigerator"]
    prompts.append(next(prompt for prompt, row in requirements().items() if row["tag"] == "color_attr"))
    together = score(images, prompts)
    assert together == [score([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert {row["correct"] for row in together} <= {0.0, 1.0}
    names = [name for name in CLASSES if f"a photo of a {name}" in requirements()][::5]
    everything = [score(images[:1], [f"a photo of a {name}"])[0]["correct"] for name in names]
    assert 0 < sum(everything) < len(everything)


def test_it_never_calls_itself_geneval_alone():
    assert GenEval().identity().variant == "geneval-hf (not canonical)"
    assert GenEval().tags("a photo of two clocks") == {"task": "counting"}


def test_a_prompt_that_is_not_of_the_set_is_refused():
    with pytest.raises(ValueError, match="'a red dog' is not one of its 553 prompts"):
        GenEval().tags("a red dog")

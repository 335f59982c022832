from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor, T5ForConditionalGeneration

from dpo_core.data.section import DataSection
from ray_jobs.caption import CaptionJob, shard_job
from ray_jobs.captioning import local
from ray_jobs.captioning.endpoint import Question
from ray_jobs.captioning.local import Dipper, Draw, VisionModel
from ray_jobs.captioning.section import DescribeLocally, PerturbByDipper
from ray_jobs.captioning.texts import DIPPER_PREFIX
from ray_jobs.shards.job import run_shards, shard_files
from tests.ray_jobs.colour_pairs import colour_pairs
from tests.tiny_captioners import make_tiny_llava, make_tiny_t5

LONG = "A cat. A dog. A cow. A bird. A fish. A bee. A bear."


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return make_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("t5"))


def describer(folder: Path, **settings) -> DescribeLocally:
    return DescribeLocally(**{"model": str(folder), "dtype": "float32", "max_tokens": 12, "batch_size": 3, **settings})


def paraphraser(folder: Path, **settings) -> PerturbByDipper:
    names = {"model": str(folder), "tokenizer": str(folder), "revision": None}
    return PerturbByDipper(**{**names, "dtype": "float32", "max_length": 12, "batch_size": 2, **settings})


def dipper(folder: Path, lexical: int = 60, seed: int = 0, **settings) -> Dipper:
    section = paraphraser(folder, **settings)
    return Dipper(section, section.tokenizer, lexical=lexical, top_p=0.75, max_length=section.max_length, seed=seed)


def questions() -> list[Question]:
    rng = np.random.default_rng(0)
    shapes = [(32, 48), (40, 40), (64, 32)]
    return [
        Question("what is it? " * (i + 1), rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        for i, shape in enumerate(shapes)
    ]


def test_a_description_is_what_the_model_generates_for_that_image_alone(llava):
    asked = questions()
    answers = VisionModel(describer(llava), 12).ask(asked)
    model: Any = AutoModelForImageTextToText.from_pretrained(llava)
    processor = AutoProcessor.from_pretrained(llava)
    for question, answer in zip(asked, answers, strict=True):
        text = f"user: <image>\n{question.text} assistant: "
        inputs = processor(images=[question.image], text=[text], return_tensors="pt")
        written = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        said = " ".join(processor.tokenizer.decode(written, skip_special_tokens=True).split())
        assert answer.text == local._checked(said, sent=0, answered=0, cut_off=False).text
        assert (answer.sent, answer.answered) == (inputs["input_ids"].shape[1], len(written))
    assert len({answer.text for answer in answers}) == 3


def test_dipper_paraphrases_three_sentences_at_a_time_after_what_it_wrote_before(t5, monkeypatch):
    inputs: list[list[str]] = []

    def write(self, texts, draws):
        inputs.append(texts)
        return [(f"out {len(inputs)}", 1, 1, False) for _ in texts]

    monkeypatch.setattr(Dipper, "_generate", write)
    answers = dipper(t5, lexical=80).perturb([LONG, "one"], ["1", "2"])
    assert [answer.text for answer in answers] == ["out 1 out 2 out 3", "out 1"]
    head = f"lexical = 20, order = 100 {DIPPER_PREFIX}"
    assert inputs == [
        [f"{head} <sent> A cat. A dog. A cow. </sent>", f"{head} <sent> one </sent>"],
        [f"{head} out 1 <sent> A bird. A fish. A bee. </sent>"],
        [f"{head} out 1 out 2 <sent> A bear. </sent>"],
    ]


def test_a_paraphrase_depends_on_seed_and_pair_and_not_on_its_batch(t5):
    model = dipper(t5)
    texts, ids = [LONG, "a red car", "a red car"], ["1", "2", "3"]
    together = [answer.text for answer in model.perturb(texts, ids)]
    assert together == [model.perturb([text], [pair])[0].text for text, pair in zip(texts, ids, strict=True)]
    assert together[1] != together[2]
    assert dipper(t5, seed=1).perturb(texts, ids)[1].text != together[1]
    # Neither does anything else that is random in the process.
    torch.manual_seed(5)
    assert model.perturb(texts[1:2], ids[1:2])[0].text == together[1]


def test_draws_follow_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    draw = Draw([torch.Generator().manual_seed(0)])
    picked = [int(draw(torch.zeros(1, 1), logits[None]).argmax()) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(picked), minlength=4) / 4000
    torch.testing.assert_close(shares, logits.exp(), atol=0.025, rtol=0)


def test_words_outside_the_nucleus_are_never_drawn(t5):
    section = paraphraser(t5, max_length=30)
    narrow = Dipper(section, section.tokenizer, lexical=60, top_p=1e-6, max_length=30, seed=0)
    model: Any = T5ForConditionalGeneration.from_pretrained(t5)
    text = f"lexical = 40, order = 100 {DIPPER_PREFIX} <sent> a red car </sent>"
    tokens = narrow._tokenizer([text], return_tensors="pt")
    greedy = model.generate(**tokens, do_sample=False, max_length=30)[0]
    said = narrow._tokenizer.decode(greedy, skip_special_tokens=True)
    assert narrow.perturb(["a red car"], ["1"])[0].text == local._checked(said, sent=0, answered=0, cut_off=False).text


def test_weights_that_are_not_safetensors_are_refused(t5, tmp_path):
    model = T5ForConditionalGeneration.from_pretrained(t5)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    section = paraphraser(t5, model=str(tmp_path))
    with pytest.raises(ValueError, match="cannot load the captioning model"):
        Dipper(section, section.tokenizer, lexical=60, top_p=0.75, max_length=12, seed=0)


def test_a_whole_job_runs_on_local_models_and_again_gives_the_same(llava, t5, tmp_path):
    def make(out: Path) -> list[dict]:
        job = CaptionJob(
            data=DataSection(paths=[str(colour_pairs(tmp_path / "pairs", 4))], max_quarantined_share=1.0),
            out=str(out),
            shard_pairs=2,
            describe=describer(llava, instruction="{prompt}?"),
            perturb=paraphraser(t5),
            variants=["h", "p"],
            strength="strong",
        )
        record = run_shards(shard_job(job), Console(quiet=True))
        assert record.totals["calls"] == 4 * 2 + 4 * 2
        return [row for file in shard_files(out) for row in pq.read_table(file).to_pylist()]

    rows = make(tmp_path / "one")
    assert rows == make(tmp_path / "two")
    for row in rows:
        won = int(row["label_1"] > row["label_0"])
        assert row[f"caption_{won}"] == row[f"generated_{won}"]
        assert row[f"caption_{1 - won}"] == row["perturbed_caption"]
        assert row[f"caption_p_{won}"] == row["caption"]

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.prompts import Prompt
from eval.prompts.files import normalized
from eval.prompts.overlap import find_overlap, training_captions
from eval.provenance import training_of

LONG = "A red fox jumps over the lazy dog!"


def prompts(*texts, label="mine"):
    return [Prompt(i, text, {}, label) for i, text in enumerate(texts)]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    pq.write_table(
        pa.table({"caption": ["a  red fox jumps over the lazy dog", None], "jpg_0": [b"x", b"y"]}), folder / "a.parquet"
    )
    pq.write_table(
        pa.table({"chosen_captions": [["a cat"]], "rejected_captions": [["ein Kätzchen", "a cow"]]}),
        folder / "b.parquet",
    )
    pq.write_table(pa.table({"file": ["x"], "reason": ["broken"]}), folder / "quarantine.parquet")
    return folder


def test_texts_are_compared_without_case_punctuation_and_spacing():
    assert normalized("  A RED—fox,  ") == normalized("a red fox") == "a red fox"
    assert normalized("\ufb01ne \uff23\uff21\uff34") == "fine cat"


def test_the_overlap_counts_prompts_and_tells_long_ones_apart(data):
    (found,) = find_overlap(prompts(LONG, "A Cat", "a horse", "ein kätzchen"), [str(data)])
    assert (found.prompts, found.shared, found.shared_long, found.indices) == (4, 3, 1, [0, 1, 3])
    assert found.captions == 4


def test_every_set_meets_every_source_and_what_cannot_be_read_says_so(data, tmp_path):
    (tmp_path / "more.txt").write_text("a horse\n")
    rows = find_overlap(
        [*prompts("a horse"), *prompts("a cow", label="other")], [str(data), str(tmp_path / "more.txt"), "no/such"]
    )
    assert [(row.prompt_set, row.shared) for row in rows if row.captions] == [
        ("mine", 0), ("mine", 1), ("other", 1), ("other", 0)
    ]  # fmt: skip
    lost = [row for row in rows if row.captions is None]
    assert [row.source for row in lost] == ["no/such", "no/such"]
    assert "no/such" in lost[0].problem


def test_a_source_without_captions_is_refused(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="holds no captions"):
        training_captions(str(tmp_path))


def test_a_model_tells_its_data_and_who_labelled_it(tmp_path):
    pairs, model = tmp_path / "pairs", tmp_path / "model"
    pairs.mkdir()
    model.mkdir()
    (pairs / "job.json").write_text(json.dumps({"report": {"labelled_by": ["pickscore/pickscore"]}}))
    (model / "provenance.json").write_text(
        json.dumps({"config": {"data": {"paths": [str(pairs)]}}, "picked_by": {"kind": "hpsv2"}})
    )
    facts = training_of(model)
    assert facts.data == [str(pairs)]
    assert facts.labelled_by == ["pickscore/pickscore"]
    assert facts.picked_by == ["hpsv2"]
    assert training_of(tmp_path / "none").labelled_by == []
    (model / "provenance.json").write_text("{")
    assert training_of(model).data == []


def test_what_labelled_an_earlier_stage_or_the_model_under_a_lora_is_known_too(tmp_path):
    told = {
        "sft": {"base_model": "owner/name", "labelled_by": "hpsv2", "config": {"data": {"paths": ["a"]}}},
        "dpo": {
            "base_model": str(tmp_path / "sft"),
            "labelled_by": "pickscore",
            "config": {"data": {"paths": ["b", "a"]}},
        },
        "lora": {"base_model": "owner/name", "base_denoiser": str(tmp_path / "lora"), "picked_by": "aesthetic"},
    }
    for name, facts in told.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(json.dumps(facts))
    facts = training_of(tmp_path / "dpo", tmp_path / "lora" / "weights.safetensors")
    assert facts.labelled_by == ["hpsv2", "pickscore"]
    assert facts.data == ["b", "a"]
    (tmp_path / "lora" / "weights.safetensors").touch()
    assert training_of(tmp_path / "dpo", tmp_path / "lora" / "weights.safetensors").picked_by == ["aesthetic"]

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.prompts import FOLDER, load_prompt_set, load_prompts, prompt_sets


@pytest.mark.parametrize(
    ("name", "count"), [("partiprompts", 1632), ("geneval", 553), ("drawbench", 200), ("dreambench", 750)]
)
def test_a_set_has_as_many_prompts_as_its_source(name, count):
    assert len(load_prompts(name)) == count


def test_the_files_are_the_ones_listed_with_their_hash():
    sources = (FOLDER / "SOURCES.md").read_text()
    for name in prompt_sets():
        file = next(FOLDER.glob(f"{name}.*"))
        assert f"`{file.name}`" in sources
        if not name.startswith("shapes_"):
            assert hashlib.sha256(file.read_bytes()).hexdigest() in sources


def test_a_prompt_that_begins_with_a_quotation_mark_keeps_it():
    assert sum(prompt.startswith('"') for prompt in load_prompts("partiprompts")) >= 1


def test_prompts_carry_the_groups_of_their_file():
    assert load_prompt_set("partiprompts")[0].tags == {"category": "Abstract", "challenge": "Basic"}
    assert {prompt.tags["task"] for prompt in load_prompt_set("geneval")} >= {"counting", "position"}


def test_a_smaller_limit_is_part_of_a_larger_one_and_indices_stay():
    few, more, whole = (load_prompt_set("partiprompts", limit) for limit in (20, 60, None))
    assert len(few) == 20
    assert {p.index for p in few} < {p.index for p in more}
    assert all(whole[prompt.index] == prompt for prompt in more)
    assert len({prompt.tags["category"] for prompt in more}) > 6


def test_a_file_of_any_of_the_formats_can_be_given(tmp_path):
    texts = ["ein roter Kreis", "über „Wasser“", "three"]
    (tmp_path / "p.txt").write_text("\n".join(texts), "utf-8")
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"caption": text}) for text in texts), "utf-8")
    (tmp_path / "p.tsv").write_text("prompt\tCategory\n" + "".join(f"{text}\tX\n" for text in texts), "utf-8")
    pq.write_table(pa.table({"prompt": texts, "image": [b"x"] * 3}), tmp_path / "p.parquet")
    for suffix in ("txt", "jsonl", "tsv", "parquet"):
        assert load_prompts(str(tmp_path / f"p.{suffix}")) == texts


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(ValueError, match="'partyprompts'; allowed: drawbench, dreambench, geneval, partiprompts"):
        load_prompts("partyprompts")


def test_bad_limits_missing_files_and_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other.jsonl").write_text('{"url": "x"}\n')
    for name, limit, message in (
        ("drawbench", 0, "limit of prompts is 0"),
        ("no/such.txt", None, "no prompt file"),
        (str(tmp_path / "empty.txt"), None, "is empty"),
        (str(tmp_path / "other.jsonl"), None, "its columns are url"),
    ):
        with pytest.raises(ValueError, match=message):
            load_prompts(name, limit)

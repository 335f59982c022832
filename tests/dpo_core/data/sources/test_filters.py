from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dpo_core.data.sources import PickAPic
from dpo_core.data.sources.filters import FilterSection, SplitSection, is_held_out, normal_prompt
from dpo_core.data.sources.index import Facts, taken_rows

MODELS = ["dreamlike-photoreal", "CompVis/stable-diffusion", "Dreamlike-diffusion"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PickAPic:
    """60 pairs by 7 users, a third of them ties; there are no images that could be read."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {
            "caption": f"Prompt {i % 20}", "jpg_0": b"", "jpg_1": b"", "label_0": [1.0, 0.0, 0.5][i % 3],
            "label_1": [0.0, 1.0, 0.5][i % 3], "ranking_id": i,
            "user_id": None if i % 6 == 5 else i % 6 if i < 50 else 9,
            "model_0": MODELS[i % 3], "model_1": MODELS[i // 3 % 3] if i % 10 else None,
        }
        for i in range(60)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows[:35]), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[35:]), folder / "b.parquet")
    return PickAPic(paths=[str(folder / "a.parquet"), str(folder / "b.parquet")])


def taken(source: PickAPic, **filters) -> tuple[list[dict], Facts]:
    facts = Facts("")
    rows = list(taken_rows(source, FilterSection(**filters), facts))
    assert facts.total == len(rows) + sum(facts.left_out.values()) + len(facts.quarantined)
    return rows, facts


def test_ties_are_kept_or_dropped_as_said_whatever_the_path_is_called(pairs: PickAPic):
    assert len(taken(pairs)[0]) == 60
    rows, facts = taken(pairs, ties="drop")
    assert {row["label_0"] for row in rows} == {0.0, 1.0}
    assert facts.left_out == {"ties dropped": 20}


def test_annotators_are_taken_left_out_and_counted(pairs: PickAPic):
    assert {row["user_id"] for row in taken(pairs, users=[1, "2"])[0]} == {1, 2}
    assert {row["user_id"] for row in taken(pairs, not_users=[1])[0]} == {0, 2, 3, 4, 9, None}
    rows, facts = taken(pairs, min_votes=9)
    # User 9 judged too few; nobody knows how much those without a name judged.
    assert {row["user_id"] for row in rows} == {0, 1}
    assert facts.left_out == {"by users with few votes": 60 - len(rows)}


def test_both_models_must_match(pairs: PickAPic):
    rows, facts = taken(pairs, models="dream")
    assert {row["model_0"] for row in rows} == {MODELS[0], MODELS[2]}
    assert all("dream" in row["model_1"].lower() for row in rows)
    assert facts.left_out["by other models"] == 60 - len(rows)
    with pytest.raises(ValidationError, match="is no regular expression"):
        FilterSection(models="(")


def test_a_sample_is_the_same_in_any_order_of_the_files_and_grows_with_its_size(pairs: PickAPic):
    turned = PickAPic(paths=pairs.paths[::-1])
    ids = {row["ranking_id"] for row in taken(pairs, max_samples=10)[0]}
    assert len(ids) == 10
    assert ids == {row["ranking_id"] for row in taken(turned, max_samples=10)[0]}
    assert ids < {row["ranking_id"] for row in taken(pairs, max_samples=30)[0]}
    assert ids != {row["ranking_id"] for row in taken(pairs, max_samples=10, seed=1)[0]}
    assert taken(pairs, max_samples=1000)[1].left_out == {}


def test_a_sample_is_drawn_from_what_the_other_filters_leave(pairs: PickAPic):
    rows, facts = taken(pairs, max_samples=5, ties="drop", min_votes=9)
    assert len(rows) == 5
    assert {row["user_id"] for row in rows} <= {0, 1}
    assert facts.left_out["ties dropped"] == 20


def test_pairs_with_the_same_id_do_not_exceed_the_sample(tmp_path: Path):
    table = {"caption": ["a"] * 8, "jpg_0": [b""] * 8, "jpg_1": [b""] * 8, "ranking_id": [7] * 8}
    pq.write_table(pa.table(table | {"label_0": [1.0] * 8, "label_1": [0.0] * 8}), tmp_path / "a.parquet")
    assert len(taken(PickAPic(paths=[str(tmp_path)]), max_samples=3)[0]) == 3


def test_the_sides_of_a_split_share_no_prompt_and_are_all(pairs: PickAPic):
    sides = [taken(pairs, split={"held_out": 0.3, "take": take})[0] for take in ("train", "held_out")]
    assert sum(map(len, sides)) == 60
    assert all(sides)
    prompts = [{row["caption"][0] for row in rows} for rows in sides]
    assert not prompts[0] & prompts[1]


def test_a_prompt_is_held_out_however_it_is_written():
    for words in ("a red fox", "A  Red\tFox ", "\uff41 red fox", "\x1b[31ma red fox\x1b[0m"):
        assert normal_prompt(words) == "a red fox"
    assert not is_held_out("a", 0.0)
    share = np.mean([is_held_out(f"prompt {i}", 0.02) for i in range(20_000)])
    assert 0.017 < share < 0.023
    held = {i for i in range(500) if is_held_out(f"prompt {i}", 0.1)}
    assert held < {i for i in range(500) if is_held_out(f"prompt {i}", 0.2)}


def test_nothing_is_held_out_unless_asked():
    assert FilterSection().split == SplitSection(held_out=0.0, take="train")

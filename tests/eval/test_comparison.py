import json

import pytest

from eval.comparison import compare_scores
from eval.plan import ComparisonPlan
from eval.prompts import Prompt
from eval.verdict import amount, level

NAN = float("nan")
PLAN = ComparisonPlan.model_validate(
    {
        "models": {"base": "a", "dpo": "b"},
        "images_per_prompt": 2,
        "scorers": [{"kind": "aesthetic", "name": "aesthetic"}],
    }
)


def rows(**scores: list[list[float]]) -> list[dict]:
    """Scores per model, [prompt][seed]."""
    return [
        {
            "model": model,
            "prompt": f"p{i}",
            "prompt_index": i,
            "seed": seed,
            "file": f"{model}{i}{seed}",
            "blank": score == 0.5,
            "scorer": "aesthetic",
            "column": "aesthetic",
            "score": score,
        }
        for model, table in scores.items()
        for i, prompt in enumerate(table)
        for seed, score in enumerate(prompt)
    ]


def test_deltas_are_averaged_within_a_prompt_before_anything_else():
    base, dpo = [[1.0, 2.0], [3.0, 3.0], [5.0, 5.0]], [[2.0, 3.0], [3.0, 3.0], [5.0, 4.0]]
    comparison = compare_scores(PLAN, rows(base=base, dpo=dpo), [])
    difference = comparison.difference("dpo")
    assert (difference.prompts, difference.images) == (3, 6)
    assert difference.delta == pytest.approx((1 + 0 - 0.5) / 3)
    assert difference.win_rate == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert (difference.wins, difference.ties, difference.losses) == (1, 1, 1)
    assert difference.low <= difference.delta <= difference.high
    assert difference.p_adjusted == difference.p
    assert [level.mean for level in comparison.levels] == pytest.approx([9.5 / 3, 10 / 3])


def test_scores_that_do_not_apply_are_left_out_in_pairs():
    comparison = compare_scores(PLAN, rows(base=[[1, NAN], [NAN, NAN]], dpo=[[2, 9], [7, NAN]]), [])
    difference = comparison.difference("dpo")
    assert (difference.prompts, difference.images, difference.delta) == (1, 1, 1.0)


def test_zeros_and_ones_are_shares_and_other_numbers_are_not():
    assert compare_scores(PLAN, rows(base=[[0, 1]], dpo=[[1, NAN]]), []).headline.is_share
    assert not compare_scores(PLAN, rows(base=[[0, 1]], dpo=[[1, 0.5]]), []).headline.is_share


def test_numbers_have_their_unit_and_as_many_digits_as_say_something():
    def headline(scale, table):
        return compare_scores(PLAN, [row | {"scale": scale} for row in rows(base=table, dpo=table)], []).headline

    cosines = headline("cosine", [[0.28, 0.3], [0.31, 0.27]])
    assert (cosines.unit, cosines.decimals) == ("cosine", 4)
    assert (amount(0.0123, cosines), level(0.28, cosines)) == ("+0.0123", "0.2800")
    wide = headline("raw", [[5.0, 6.0], [7.0, 4.0]])
    assert (wide.unit, wide.decimals) == ("", 3)
    assert headline("0 or 1", [[0.0, 1.0]]).unit == "% of images"
    assert headline("cosine", [[0.3, 0.3]]).decimals == 3


def test_a_missing_image_is_an_error_and_not_a_smaller_sample():
    with pytest.raises(ValueError, match=r"do not have the same images.*\(1, 0\)"):
        compare_scores(PLAN, rows(base=[[1, 2], [1, 2]], dpo=[[1, 2]]), [])


def test_p_values_are_adjusted_over_all_models():
    plan = PLAN.model_copy(update={"models": {"base": "a", "one": "b", "two": "c"}})
    base = [[0.0]] * 8
    comparison = compare_scores(plan, rows(base=base, one=[[1.0]] * 8, two=[[1.0]] * 7 + [[-1.0]]), [])
    one, two = comparison.difference("one"), comparison.difference("two")
    assert one.p == 2 / 256
    assert one.p_adjusted == 4 / 256
    assert two.p_adjusted == pytest.approx(two.p)


def test_groups_come_from_the_prompts_and_small_ones_are_left_out():
    prompts = [Prompt(i, f"p{i}", {"category": "many" if i < 6 else "few"}) for i in range(8)]
    comparison = compare_scores(PLAN, rows(base=[[0, 0]] * 8, dpo=[[1, 1]] * 8), prompts)
    assert [(g.group, g.value, g.model, g.prompts, g.mean) for g in comparison.groups] == [
        ("category", "many", "base", 6, 0.0),
        ("category", "many", "dpo", 6, 1.0),
    ]


def test_blank_images_are_counted_and_the_numbers_are_json():
    comparison = compare_scores(PLAN, rows(base=[[0.5, 1]], dpo=[[1, 1]]), [], {"base": "abc"})
    assert comparison.blank == {"base": 1, "dpo": 0}
    numbers = json.loads(json.dumps(comparison.numbers(), allow_nan=False))
    assert numbers["weights"] == {"base": "abc"}
    assert "scores" not in numbers

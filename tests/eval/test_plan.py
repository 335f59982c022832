import pytest
from pydantic import ValidationError

from eval.plan import ComparisonPlan

GOOD = {"models": {"base": "a/b", "dpo": "runs/x/model"}, "scorers": [{"kind": "aesthetic"}]}


def test_seeds_count_up_from_the_first():
    assert ComparisonPlan.model_validate(GOOD | {"images_per_prompt": 3, "seed": 5}).seeds == [5, 6, 7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "bsae"}, "baseline 'bsae' is not one of the models; allowed: base, dpo"),
        ({"models": {"base": "a", "../x": "b"}}, "'../x' becomes a folder name"),
        ({"models": {}}, "at least 1"),
        ({"scorers": [{"kind": "aesthetic"}, {"kind": "aesthetic", "head": "x"}]}, "aesthetic is there twice"),
        ({"scorers": []}, "at least 1"),
        ({"scorers": [{"kind": "beauty"}]}, "'beauty'"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(change, message):
    with pytest.raises(ValidationError) as error:
        ComparisonPlan.model_validate(GOOD | change)
    assert message in str(error.value)


def test_two_scorers_of_a_kind_can_be_told_apart_by_name():
    scorers = [{"kind": "clip"}, {"kind": "clip", "name": "clip_h", "model": "ViT-H-14"}]
    plan = ComparisonPlan.model_validate(GOOD | {"scorers": scorers})
    assert [scorer.label for scorer in plan.scorers] == ["clip", "clip_h"]


def test_scorers_that_compare_with_photos_need_some():
    with pytest.raises(ValueError, match=r"scorers: dino, clip_i compare images with photos: set `photos\.references`"):
        ComparisonPlan.model_validate(
            {"models": {"base": "a", "b": "c"}, "scorers": [{"kind": "dino"}, {"kind": "clip_i"}, {"kind": "clip_t"}]}
        )

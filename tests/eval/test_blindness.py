"""Equal models, many times over, at the level of scores: how often does the judge name a difference?"""

import numpy as np
import pytest

from eval.comparison import compare_scores
from eval.plan import ComparisonPlan
from eval.stats import benjamini_hochberg, mean_interval, sign_flip_p
from eval.verdict import verdicts

PROMPTS = 72


def answers(rng, chance, gain=0.0):
    """Right or wrong on every prompt, which are hard or easy: [models, prompts]."""
    base, other = rng.random(PROMPTS) < chance, rng.random(PROMPTS) < np.minimum(1, chance + gain)
    return np.stack([base, other]).astype(float)


def test_scorers_that_see_much_the_same_together_name_a_difference_in_at_most_one_of_twenty_blind_runs():
    rng, runs, named = np.random.default_rng(0), 500, 0
    for _ in range(runs):
        right = answers(rng, rng.beta(0.6, 2.5, PROMPTS))
        soft = right + rng.normal(0, 0.5, right.shape)
        p, zero = [], []
        for scores, bound in ((right, 1.0), (soft, None), (rng.normal(size=right.shape), None)):
            deltas = scores[1] - scores[0]
            low, high = mean_interval(deltas, bound=bound)
            p.append(sign_flip_p(deltas, resamples=499))
            zero.append(low <= 0 <= high)
        named += any(q < 0.05 and not inside for q, inside in zip(benjamini_hochberg(p), zero, strict=True))
    assert named / runs <= 0.06


def rows_of(scores, plan):
    return [
        {"scorer": "shapes", "column": column, "model": model, "prompt_set": plan.sets[0], "prompt": f"p{i}"}
        | {"prompt_index": i, "seed": 0, "file": f"{model}{i}.png", "blank": False, "score": float(scores[side, i])}
        for side, model in enumerate(plan.models)
        for i in range(PROMPTS)
        for column in plan.scorers[0].columns
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "least", "most"), [(0.0, 0, 7), (0.25, 80, 100)])
def test_of_a_hundred_comparisons_seven_at_most_see_what_is_not_there_and_most_see_what_is(gain, least, most):
    plan = ComparisonPlan.model_validate(
        {"models": {"base": "a", "same": "b"}, "scorers": [{"kind": "shapes"}], "prompts": "shapes_heldout"}
    )
    rng, shown = np.random.default_rng(1), 0
    for _ in range(100):
        scores = answers(rng, rng.beta(0.6, 2.5, PROMPTS), gain)
        comparison = compare_scores(plan, rows_of(scores, plan), [])
        shown += not verdicts(comparison)[0].startswith("No difference shown")
    assert least <= shown <= most

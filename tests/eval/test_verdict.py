from dataclasses import replace

import numpy as np
import pytest

from eval.comparison import Comparison, Difference, Metric, compare_scores
from eval.plan import ComparisonPlan
from eval.prompts.overlap import Overlap
from eval.scorers.geneval import GenEval
from eval.verdict import cautions, improved, verdict, verdicts

PLAN = ComparisonPlan.model_validate(
    {
        "models": {"base": "a", "sft": "b", "dpo": "c"},
        "control": "sft",
        "prompts": ["one", "two"],
        "sampler": {"preset": "sd15"},
        "scorers": [{"kind": "pickscore"}, {"kind": "aesthetic"}],
    }
)


SHARE = Metric("shapes", "correct", "all as asked", True, True, True)


def difference(**changes) -> Difference:
    facts = {
        "model": "dpo",
        "against": "base",
        "metric": "shapes/correct",
        "prompt_set": "shapes_heldout",
        "prompts": 144,
        "images": 144,
        "delta": 0.123,
        "low": 0.081,
        "high": 0.164,
        "effect_size": 0.5,
        "win_rate": 0.61,
        "win_low": 0.57,
        "win_high": 0.65,
        "wins": 40,
        "ties": 95,
        "losses": 9,
        "p": 0.0004,
        "p_sign": 0.0004,
        "p_adjusted": 0.0004,
        "shown": True,
        "minimum_detectable": 0.06,
    }
    return Difference(**facts | changes)


def compared(gains: dict[str, dict[str, float]], plan: ComparisonPlan = PLAN, **more) -> Comparison:
    """40 prompts in both sets; ``gains``: model -> scorer -> mean gain over the base, with a spread of 1."""
    rng = np.random.default_rng(0)
    prompts = [f"one:{i}" for i in range(40)]
    base = rng.normal(size=40)
    rows = []
    for label in plan.sets:
        for scorer in plan.scorers:
            column = scorer.primary
            for model in plan.models:
                scores = base + gains.get(model, {}).get(scorer.kind, 0.0) + (model != "base") * rng.normal(size=40)
                rows += [
                    {
                        "model": model, "prompt_set": label, "prompt": prompt, "prompt_index": i, "seed": 0,
                        "file": f"{model}-{label}-{i}", "blank": False, "scorer": scorer.label, "column": column,
                        "score": float(score),
                    }
                    for i, (prompt, score) in enumerate(zip(prompts, scores, strict=True))
                ]  # fmt: skip
    return compare_scores(plan, rows, [], **more)


BOTH = {"dpo": {"pickscore": 2.0, "aesthetic": 2.0}}


def test_the_verdict_is_a_plain_sentence():
    assert verdict(difference(), SHARE) == (
        "dpo beats base on shapes/correct: +12.3 points [+8.1, +16.4], wins 61% [57%, 65%] of 144 prompts "
        "(95 % intervals; ties count half)."
    )
    assert verdict(difference(delta=-0.1, low=-0.2, high=-0.05), SHARE).startswith("dpo is worse than base on")


def test_the_verdict_names_no_winner_without_evidence_and_tells_what_could_be_seen():
    text = verdict(difference(delta=0.02, low=-0.02, high=0.06, p=0.02, p_adjusted=0.08, shown=False), SHARE)
    assert text.startswith("No difference shown between dpo and base")
    assert text.endswith("A difference of 6.0 points would show in four of five such runs.")


def test_a_scorer_that_labelled_the_data_never_makes_the_headline():
    assert compared(BOTH).headline.scorer == "pickscore"
    for name in ("pickscore", "pickscore/pickscore", "PickScore-v1"):
        found = compared(BOTH, partial={name: "labelled the training data of dpo"})
        assert found.headline.scorer == "aesthetic"
        assert verdicts(found)[0].startswith("sft") or "aesthetic" in verdicts(found)[0]
        assert any("pickscore labelled the training data of dpo" in sentence for sentence in cautions(found))
        assert improved(found, "dpo")


def test_a_scorer_named_in_the_plan_is_left_out_too():
    found = compared(BOTH, PLAN.model_copy(update={"partial_scorers": ["pickscore"]}))
    assert found.headline.scorer == "aesthetic"


def test_without_an_independent_scorer_nothing_is_proven():
    both = dict.fromkeys(("pickscore", "aesthetic"), "picked the checkpoint of dpo")
    found = compared(BOTH, partial=both)
    said = next(sentence for sentence in verdicts(found) if sentence.startswith("dpo"))
    assert "beats" not in said
    assert said.startswith("dpo scores higher than base on pickscore")
    assert "no independent judgement: pickscore picked the checkpoint of dpo" in said
    assert "nothing here proves an improvement" in cautions(found)[0]
    assert not improved(found, "dpo")


def test_every_contrast_gets_a_sentence_the_first_set_and_the_base_first():
    said = verdicts(compared(BOTH))
    assert len(said) == 6
    assert "sft and base" in said[0]
    assert said[0].count("of one") == 1
    assert said[1].startswith("dpo beats base on pickscore")
    assert said[2].startswith("dpo beats sft on pickscore")
    assert all("prompts of two" in sentence for sentence in said[3:])


def test_scorers_that_see_the_opposite_are_reported():
    found = compared({"dpo": {"pickscore": 2.0, "aesthetic": -2.0}})
    told = [sentence for sentence in cautions(found) if "disagree" in sentence]
    assert len(told) == 2
    assert told[0].startswith("Scorers disagree with the headline: dpo against base on aesthetic \u2212")
    assert "(one), \u2212" in told[0]
    assert not any("disagree" in sentence for sentence in cautions(compared(BOTH)))


def test_what_other_scorers_see_is_told_where_the_headline_sees_nothing():
    said = cautions(compared({"dpo": {"aesthetic": -2.0}}))
    told = [sentence for sentence in said if sentence.startswith("Where the headline shows no difference")]
    assert len(told) == 2
    assert "dpo against base on aesthetic \u2212" in told[0]
    assert told[0].count("(one)") == told[0].count("(two)") == 1
    assert not any(sentence.startswith("Where the headline") for sentence in cautions(compared(BOTH)))
    partial = compared({"dpo": {"aesthetic": -2.0}}, partial={"aesthetic": "picked the checkpoint of dpo"})
    assert not any(sentence.startswith("Where the headline") for sentence in cautions(partial))


def test_with_several_claims_the_detectable_difference_is_a_lone_one():
    assert "were it the only one, would show in four" in verdicts(compared({}))[0]


def test_prompts_that_were_trained_on_are_reported_and_unknown_is_not_none():
    overlaps = [
        Overlap("one", "data/pairs", 40, 900, 7, 3, []),
        Overlap("two", "data/pairs", 40, 900, 0, 0, []),
        Overlap("two", "gone", 40, None, 0, 0, [], "no file or folder 'gone'"),
    ]
    said = cautions(compared(BOTH, overlaps=overlaps))
    assert "7 of 40 prompts of one (3 with six words or more) are among the training captions in data/pairs." in said
    assert "Whether prompts of two were trained on is not known: no file or folder 'gone'." in said
    assert len([sentence for sentence in said if "trained on" in sentence or "training captions" in sentence]) == 2


def test_a_difference_that_only_correction_takes_away_is_told_so():
    found = compared({"dpo": {"pickscore": 0.5}})
    d = replace(found.difference("dpo"), low=0.1, high=0.9, p_adjusted=0.07, shown=False)
    found = replace(found, differences=[d])
    assert "may be chance (adjusted p 0.070)" in verdicts(found)[0]


def test_few_prompts_are_called_few():
    few = compared(BOTH)
    assert not any("few" in sentence for sentence in cautions(few))
    small = replace(few, differences=[replace(d, prompts=12) for d in few.differences])
    assert any(sentence.startswith("12 prompts are few") for sentence in cautions(small))
    tiny = replace(few, differences=[replace(d, prompts=5) for d in few.differences])
    assert "5 prompts are too few: no difference could be shown, however large." in cautions(tiny)


def test_published_numbers_stand_beside_the_same_protocol_only():
    models = {"base": "runwayml/stable-diffusion-v1-5", "sft": "b", "dpo": "c"}
    plan = PLAN.model_copy(update={"models": models, "prompts": ["hpdv2", "two"]})
    rows = compared(BOTH, plan).published
    assert {(row.metric, row.method) for row in rows} >= {("pickscore", "Diffusion-DPO"), ("aesthetic", "SUDO")}
    dpo = next(row for row in rows if (row.metric, row.method) == ("pickscore", "Diffusion-DPO"))
    assert (dpo.delta, dpo.win_rate, dpo.prompt_set) == (pytest.approx(0.46), 0.7572, "hpdv2")
    fewer_steps = plan.sampler.model_copy(update={"num_inference_steps": 20})
    for change in ({"limit": 100}, {"split": "report"}, {"sampler": fewer_steps}, {"models": PLAN.models}):
        assert compared(BOTH, plan.model_copy(update=change)).published == []


def test_a_scorer_that_is_not_the_published_one_says_so_on_every_report():
    found = compared({}, PLAN.model_copy(update={"scorers": [GenEval(), *PLAN.scorers]}))
    assert any(
        sentence.startswith("geneval/correct is geneval-hf (not canonical): not the published detector")
        for sentence in cautions(found)
    )
    assert found.headline.variant == "geneval-hf (not canonical)"
    assert not any("canonical" in sentence for sentence in cautions(compared({})))

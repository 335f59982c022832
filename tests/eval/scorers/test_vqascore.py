import math

import pytest
from PIL import Image

from eval.scorers.endpoint import Asker, EndpointSection
from eval.scorers.vqascore import VQAScore
from tests.eval.scorers.chat_server import chat_server, text_choice


def by_redness(request, image, question):
    """Says yes as surely as the picture is red, spread over several spellings."""
    red = image.convert("RGB").getpixel((0, 0))[0] / 255
    tokens = [("Yes", red * 0.7), (" yes", red * 0.2), ("YES", red * 0.1), ("No", 1 - red), ("Yesterday", 0.05)]
    return text_choice("Yes" if red > 0.5 else "No.", [(token, math.log(max(p, 1e-9))) for token, p in tokens])


def scorer(url, **settings):
    return VQAScore(endpoint=EndpointSection(url=url, model="seer", retries=3), **settings)


REDS = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (255, 51, 204, 0)]


def test_score_is_the_probability_of_yes_however_it_is_written():
    with chat_server(by_redness) as (url, seen):
        rows = scorer(url).load()(REDS, ["a", "b", "c", "d"])
    assert [row["yes"] for row in rows] == pytest.approx([1, 0.2, 0.8, 0], abs=1e-6)
    request = seen[0][0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("seer", 0, 1)
    assert (request["logprobs"], request["top_logprobs"]) == (True, 20)
    questions = {request["messages"][0]["content"][1]["text"] for request, _ in seen}
    assert 'Does this figure show "b"? Please answer yes or no.' in questions


def test_a_bare_answer_counts_as_zero_or_one():
    with chat_server(lambda *given: text_choice(by_redness(*given)["message"]["content"])) as (url, _):
        rows = scorer(url, logprobs=False).load()(REDS, ["a"] * 4)
        assert [row["yes"] for row in rows] == [1, 0, 1, 0]
        with pytest.raises(ValueError, match="gives no token probabilities; set logprobs: false"):
            scorer(url).load()(REDS[:1], ["a"])


def test_failures_in_transit_are_repeated():
    answers = iter([429, 500, 503])
    with chat_server(lambda *given: next(answers, None) or by_redness(*given)) as (url, seen):
        assert scorer(url).load()(REDS[:1], ["a"])[0]["yes"] == pytest.approx(1)
        assert len(seen) == 4


def test_a_refusal_and_a_dead_server_are_one_clear_error():
    with chat_server(lambda *given: 401) as (url, seen):
        with pytest.raises(ValueError, match=r"model 'seer': .*told to fail"):
            scorer(url).load()(REDS[:1], ["a"])
        assert len(seen) == 1
    dead = VQAScore(endpoint=EndpointSection(url=url, model="seer", retries=0))
    with pytest.raises(ValueError, match="Connection error"):
        dead.load()(REDS[:1], ["a"])


def test_the_key_comes_from_the_named_variable_and_from_nowhere_else(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-this-server")
    monkeypatch.setenv("SEER_KEY", "for-the-seer")
    with chat_server(by_redness) as (url, seen):
        for variable in (None, "SEER_KEY"):
            section = EndpointSection(url=url, model="seer", key_variable=variable)
            VQAScore(endpoint=section).load()(REDS[:1], ["a"])
        assert [headers["authorization"] for _, headers in seen] == ["Bearer none", "Bearer for-the-seer"]
        with pytest.raises(ValueError, match="the environment variable NO_KEY for the key is not set"):
            Asker(EndpointSection(url=url, model="seer", key_variable="NO_KEY"))


def test_cost_is_counted_and_a_budget_stops_it():
    with chat_server(by_redness) as (url, seen):
        section = EndpointSection(
            url=url, model="seer", concurrency=1, dollars_per_million_input=3, dollars_per_million_output=50,
            most_dollars=0.006,
        )  # fmt: skip
        asker = Asker(section)
        for _ in range(2):
            asker.ask(REDS[0], "?")
        # 1000 tokens in at 3 and 10 out at 50 dollars a million.
        assert (asker.requests, asker.sent, asker.received) == (2, 2000, 20)
        assert asker.dollars == pytest.approx(0.007)
        with pytest.raises(ValueError, match=r"0\.01 dollars are spent, of at most 0\.006"):
            asker.ask(REDS[0], "?")
        assert len(seen) == 2


def test_large_images_are_made_smaller_and_small_ones_stay():
    sizes = []

    def note(request, image, question):
        sizes.append(image.size)
        return text_choice("yes", [("yes", 0.0)])

    with chat_server(note) as (url, _):
        section = EndpointSection(url=url, model="seer", longest_side=64, concurrency=1)
        VQAScore(endpoint=section).load()([Image.new("RGB", (256, 128)), Image.new("RGBA", (20, 64))], ["a", "b"])
    assert sizes == [(64, 32), (20, 64)]


def test_a_question_without_the_prompt_is_refused():
    with pytest.raises(ValueError, match=r"has no place for \{prompt\}"):
        scorer("http://localhost", question="Is it nice?").load()

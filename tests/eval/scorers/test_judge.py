import logging
import math

import pytest
from PIL import Image

from eval.scorers.endpoint import EndpointSection
from eval.scorers.judge import Judge
from tests.eval.scorers.chat_server import chat_server, text_choice

PICTURE = Image.new("RGB", (8, 8))


def judge(url, **settings):
    return Judge(endpoint=EndpointSection(url=url, model="critic", concurrency=1), **settings)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Fine.\nFinal Score: 4.5", 4.5),
        ("I first thought Final Score: 2, but no. **Final Score:** 3 of 5\nFinal Score: **3**", 3.0),
        ("Final Score: 1", 1.0),
        ("Final Score: 7", None),
        ("A rating of 4", None),
        ("Final Score: four", None),
        ("", None),
    ],
)
def test_the_rating_follows_the_last_marker_and_lies_on_the_scale(answer, expected):
    assert judge("http://localhost").rating(answer) == expected


def test_the_question_tells_prompt_and_scale():
    with chat_server(lambda *given: text_choice("Final Score: 8")) as (url, seen):
        assert judge(url, least=0, most=10).load()([PICTURE], ["a {most} red dog"]) == [{"rating": 8.0}]
    words = seen[0][0]["messages"][0]["content"][1]["text"]
    assert 'for the prompt: "a {most} red dog"' in words
    assert "between 0 (it\nfails at both) and 10 (it cannot" in words


def test_an_answer_without_rating_is_asked_for_again_and_warmer():
    answers = iter(["Nice!", "Final Score: 2.5"])
    with chat_server(lambda *given: text_choice(next(answers))) as (url, seen):
        assert judge(url).load()([PICTURE], ["a"]) == [{"rating": 2.5}]
    assert [request["temperature"] for request, _ in seen] == [0.0, 0.7]


def test_no_rating_at_all_is_no_number_and_a_warning(caplog):
    with (
        chat_server(lambda *given: text_choice("I cannot judge this.")) as (url, seen),
        caplog.at_level(logging.WARNING),
    ):
        (row,) = judge(url, attempts=2).load()([PICTURE], ["a red dog"])
    assert math.isnan(row["rating"])
    assert len(seen) == 2
    assert "no rating for 'a red dog' after 2 answers: 'I cannot judge this.'" in caplog.text


def test_ratings_come_back_in_order():
    with chat_server(lambda request, image, words: text_choice(f"Final Score: {image.size[0] / 10}")) as (url, _):
        section = EndpointSection(url=url, model="critic", concurrency=8)
        pictures = [Image.new("RGB", (side, 10)) for side in range(10, 50)]
        rows = Judge(endpoint=section).load()(pictures, ["a"] * 40)
    assert [row["rating"] for row in rows] == [side / 10 for side in range(10, 50)]


def test_a_judge_that_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="no place for"):
        judge("http://localhost", question="How nice?")
    with pytest.raises(ValueError, match=r"least 5\.0 is not below most 1\.0"):
        judge("http://localhost", least=5, most=1)

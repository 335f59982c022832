import pytest

from dpo_core.data.quarantine import Reason, RowRejected
from ray_jobs.captioning.texts import DIPPER_PREFIX, LEXICAL, caption_of, dipper_input, fill, sentences, windows


def test_dipper_reads_codes_of_what_is_kept_the_prefix_and_the_window_in_tags():
    assert dipper_input("A cat sits.", DIPPER_PREFIX, LEXICAL["weak"]) == (
        "lexical = 60, order = 100 Paraphrase and perturb the following image caption. <sent> A cat sits. </sent>"
    )
    assert dipper_input("B.", f"{DIPPER_PREFIX} A\n feline.", LEXICAL["strong"]).startswith(
        "lexical = 20, order = 100 Paraphrase and perturb the following image caption. A feline. <sent>"
    )


def test_levels_change_more_and_more():
    assert [LEXICAL["weak"], LEXICAL["medium"], LEXICAL["strong"]] == [40, 60, 80]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("a cat\n and a dog", ["a cat and a dog"]),
        ("Dr. Who and J. Doe vs. Mr. X. They wait.", ["Dr. Who and J. Doe vs. Mr. X. They wait."]),
        ('She says "no." Then she goes.', ['She says "no."', "Then she goes."]),
        ("At 3.5 metres. f/2.8 lens", ["At 3.5 metres. f/2.8 lens"]),
        ("Portrait. 4k. Trending.", ["Portrait.", "4k.", "Trending."]),
    ],
)
def test_sentences_end_where_a_reader_would_say_so(text, expected):
    assert sentences(text) == expected


def test_windows_hold_three_sentences_and_lose_none():
    assert windows("A. B! C? D. E!".replace("A.", "Aa.").replace("D.", "Dd.")) == ["Aa. B! C?", "Dd. E!"]
    assert windows("just one") == ["just one"]


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A red car.", "A red car."),
        ('"A red car."', "A red car."),
        ("Caption: A red\n car", "A red car"),
        ("**New caption:** \u201ca red car\u201d", "a red car"),
        ("<think>The image\nshows</think> A red car", "A red car"),
        ('"Stop" says a sign, "go" another"', '"Stop" says a sign, "go" another"'),
        ("Sorrow, painted in blue", "Sorrow, painted in blue"),
        ("I canvas a blue sea", "I canvas a blue sea"),
    ],
)
def test_a_caption_is_freed_of_what_models_put_around_it(answer, caption):
    assert caption_of(answer) == caption


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, Reason.CAPTION_EMPTY),
        (" \n", Reason.CAPTION_EMPTY),
        ("Caption:", Reason.CAPTION_EMPTY),
        ("<think>hm</think>", Reason.CAPTION_EMPTY),
        ("I'm sorry, I can't help with that.", Reason.CAPTION_REFUSED),
        ("I\u2019m very sorry, but no.", Reason.CAPTION_REFUSED),
        ("I cannot describe people.", Reason.CAPTION_REFUSED),
        ("As an AI language model, I", Reason.CAPTION_REFUSED),
    ],
)
def test_an_answer_that_is_no_caption_is_rejected_with_its_reason(answer, reason):
    with pytest.raises(RowRejected) as rejected:
        caption_of(answer)
    assert rejected.value.reason == reason


def test_templates_leave_the_braces_of_prompts_alone():
    filled = fill("{a} and {b} and {c}", a="{b}", b="{x} \\1")
    assert filled == "{b} and {x} \\1 and {c}"

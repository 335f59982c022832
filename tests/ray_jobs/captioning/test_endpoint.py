"""Asking an OpenAI-compatible server that is busy, broken, silent or shut."""

from pathlib import Path

import pytest
from rich.console import Console

from dpo_core.data.quarantine import read_quarantine
from ray_jobs.caption import main, shard_job
from ray_jobs.shards.job import run_shards
from tests.ray_jobs.caption_jobs import job, rows_of
from tests.ray_jobs.chat_server import GARBLED, chat_server
from tests.ray_jobs.colour_pairs import colour_pairs, named

QUIET = Console(quiet=True)


@pytest.fixture
def pairs(tmp_path) -> Path:
    return colour_pairs(tmp_path / "pairs", 6)


def test_a_server_that_is_busy_broken_or_slow_is_asked_again(pairs, tmp_path):
    with chat_server(script=["429", "500", "slow"]) as server:
        work = job(
            server,
            pairs,
            tmp_path / "out",
            perturbed=False,
            endpoint={"max_retries": 3, "timeout": 1, "concurrency": 1},
        )
        record = run_shards(shard_job(work), QUIET)
    assert record.totals["in quarantine"] == 0
    assert len(server.calls) == 12 + 3
    assert server.calls[1].at - server.calls[0].at >= 1.0, "Retry-After was not heeded"
    assert [(row["caption_0"], row["caption_1"]) for row in rows_of(tmp_path / "out")] == [
        (named(i, 0), named(i, 1)) for i in range(6)
    ]


def test_answers_that_are_no_chat_completion_are_asked_for_again_and_text_in_parts_is_read(pairs, tmp_path):
    script = [action for garbled in GARBLED for action in (garbled, "ok")]
    with chat_server(script=[*script, "parts"]) as server:
        settings = {"max_retries": 1, "concurrency": 1}
        work = job(server, pairs, tmp_path / "out", perturbed=False, endpoint=settings)
        record = run_shards(shard_job(work), QUIET)
    assert record.totals["in quarantine"] == 0
    assert len(server.calls) == 12 + len(GARBLED)
    assert [row["caption_0"] for row in rows_of(tmp_path / "out")] == [named(i, 0) for i in range(6)]


def test_pairs_whose_answers_are_never_chat_completions_are_in_quarantine(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 10)
    script = [action for garbled in GARBLED for action in (garbled, "ok")]
    with chat_server(script=script) as server:
        work = job(server, pairs, tmp_path / "out", perturbed=False, endpoint={"max_retries": 0, "concurrency": 1})
        run_shards(shard_job(work), QUIET)
    found = read_quarantine(tmp_path / "out" / "quarantine.parquet")
    assert [item.row for item in found] == list(range(len(GARBLED)))
    assert {str(item.reason) for item in found} == {"answer_missing"}
    assert all(item.detail.startswith("generated_0: the answer is no chat completion: ") for item in found)


def test_answers_that_are_no_captions_put_their_pair_in_quarantine(tmp_path):
    pairs = colour_pairs(tmp_path / "pairs", 10)
    script = ["empty", "ok", "sorry", "ok", "ok", "refusal", "filter", "ok", "400", "ok", "500", "ok", "long"]
    with chat_server(script=script) as server:
        work = job(
            server,
            pairs,
            tmp_path / "out",
            perturbed=False,
            endpoint={"concurrency": 1, "prompt_price": 2.0, "answer_price": 10.0},
        )
        record = run_shards(shard_job(work), QUIET)
    found = {
        item.row: (str(item.reason), item.detail) for item in read_quarantine(tmp_path / "out" / "quarantine.parquet")
    }
    assert {row: reason for row, (reason, _) in found.items()} == {
        0: "caption_empty", 1: "caption_refused", 2: "caption_refused", 3: "caption_refused",
        4: "answer_missing", 5: "answer_missing",
    }  # fmt: skip
    assert found[2][1] == "generated_1: not this one"
    assert "scripted 500" in found[5][1]
    assert len(rows_of(tmp_path / "out")) == 4
    # Two calls got no answer, so nothing was paid for them.
    paid = {"calls": 20, "tokens sent": 1800, "tokens answered": 180, "cost": 0.0054, "cut off": 1}
    assert record.totals == {"read": 10, "made": 4, "in quarantine": 6, **paid}


@pytest.mark.parametrize(
    ("server_settings", "endpoint", "message"),
    [
        ({"key": "right"}, {"api_key_env": "CAPTION_TEST_KEY"}, "refuses 'tiny-vlm': .*wrong key"),
        ({"model": "tiny-vlm"}, {"model": "other"}, "refuses 'other': .*no such model"),
        ({"script": ["429"] * 4}, {}, "refuses 'tiny-vlm': .*scripted 429"),
        ({}, {"api_key_env": "CAPTION_TEST_UNSET"}, "CAPTION_TEST_UNSET .* is not set"),
        ({}, {"base_url": "http://127.0.0.1:9/v1"}, "cannot be reached"),
        ({"script": ["500"] * 40}, {"concurrency": 1}, "failed 8 calls in a row"),
    ],
)
def test_a_server_that_lets_nobody_in_stops_the_job_and_costs_no_row(
    pairs, tmp_path, monkeypatch, server_settings, endpoint, message
):
    monkeypatch.setenv("CAPTION_TEST_KEY", "secret-and-wrong")
    with chat_server(**server_settings) as server:
        work = job(server, pairs, tmp_path / "out", perturbed=False, endpoint=endpoint, shard_pairs=6)
        with pytest.raises(ValueError, match=message) as stopped:
            run_shards(shard_job(work), QUIET)
    assert "secret" not in str(stopped.value)
    assert not list((tmp_path / "out").glob("pairs-*"))


def test_the_key_is_sent_and_stands_nowhere_else(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_TEST_KEY", "sk-very-secret")
    with chat_server(key="sk-very-secret") as server:
        work = job(server, pairs, tmp_path / "out", perturbed=False, endpoint={"api_key_env": "CAPTION_TEST_KEY"})
        run_shards(shard_job(work))
    assert {call.key for call in server.calls} == {"Bearer sk-very-secret"}
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir())
    assert b"very-secret" not in written + "".join(capsys.readouterr()).encode()


def test_a_key_in_the_config_is_refused_without_being_shown(capsys):
    words = ["describe.kind=endpoint", "describe.model=m", "describe.api_key_env=sk-very-secret"]
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert "must be the name of an environment variable" in errors
    assert "very-secret" not in errors
    assert main([*words[:2], "describe.base_url=http://me:pass@host/v1"]) == 2
    assert "without user" in (errors := capsys.readouterr().err)
    assert "pass@" not in errors

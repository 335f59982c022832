"""SIGKILL at random moments, checkpoint writes included: the run that goes on is the run that was never killed."""

import itertools
import os
import random
import signal
import sys
import threading

import pytest

from tests.fault_table import attempt
from tests.train_runs import make_config, rows, run, same

QUICK, ALL = 3, 20


def run_until(config, folder, calls: int) -> bool:
    """Train in a process of its own that kills itself at its ``calls``-th Python call; whether it ended before.

    Calls are counted instead of seconds, so that a schedule means nearly the same on every machine; those of the thread
    that writes checkpoints count too.
    """
    child = os.fork()
    if child == 0:
        counter = itertools.count()

        def kill_when_due(*_: object) -> None:
            if next(counter) == calls:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            threading.setprofile(kill_when_due)
            sys.setprofile(kill_when_due)
            run(config, folder)
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, f"the run failed by itself in {folder}"
    return status == 0


def calls_of(config, folder) -> int:
    """Python calls of a run that nobody kills."""
    count = itertools.count()
    threading.setprofile(lambda *_: next(count))
    sys.setprofile(lambda *_: next(count))
    try:
        run(config, folder)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return next(count)


def with_background(config, background: bool):
    """The run with its checkpoints written beside the updates, or between them."""
    return config.model_copy(update={"loop": config.loop.model_copy(update={"background_checkpoints": background})})


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_sd, tiny_pairs):
    folder = tmp_path_factory.mktemp("straight")
    config = make_config(tiny_sd, tiny_pairs, loop={"max_steps": 6}, optim={"ema_decay": 0.9})
    run(config, folder / "warm")  # what is imported and compiled once is no part of a schedule
    calls = calls_of(with_background(config, False), folder / "run")  # the way that makes fewer calls
    return config, folder / "run", run(config, folder / "run"), calls


@pytest.mark.parametrize(
    "seed", [*range(QUICK), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(QUICK, ALL))]
)
def test_any_schedule_of_kills_ends_with_the_bits_of_the_run_that_was_never_killed(straight, tmp_path, seed):
    config, untouched, weights, calls = straight
    draw = random.Random(seed)
    with attempt("SIGKILL at random moments, one process", "same bits, same metrics, no leftovers") as figures:
        figures.faults = 0
        while not run_until(with_background(config, draw.random() < 0.5), tmp_path, draw.randrange(calls // 4, calls)):
            figures.faults += 1
            assert figures.faults < 30, "the run makes no headway"
        assert figures.faults > 0
        assert same(weights, run(config, tmp_path))
        assert rows(tmp_path) == rows(untouched)
        assert not list(tmp_path.rglob("*.partial"))

import time

import pytest
import torch

from ray_jobs.training.pace import FEWEST, Pace, slow_ranks


def updates(pace: Pace, count: int, own: float, wait: float) -> None:
    for _ in range(count):
        time.sleep(own)
        with pace.waiting():
            time.sleep(wait)
        pace.update_done()


def test_own_time_is_an_update_without_its_waits():
    pace = Pace(torch.device("cpu"))
    updates(pace, FEWEST, own=0.02, wait=0.05)
    assert pace.own_seconds() == pytest.approx(0.02, abs=0.015)


def test_what_one_rank_does_now_and_then_does_not_count():
    pace = Pace(torch.device("cpu"))
    updates(pace, 2 * FEWEST, own=0.005, wait=0)
    updates(pace, 1, own=0.5, wait=0)
    assert pace.own_seconds() < 0.1


def test_nothing_is_said_after_a_few_updates():
    pace = Pace(torch.device("cpu"))
    updates(pace, FEWEST - 1, own=0.001, wait=0)
    assert pace.own_seconds() == 0
    assert slow_ranks([0.0, 1.0]) == {}


@pytest.mark.parametrize(
    ("own", "slow"),
    [
        ([1.0, 1.0, 1.0, 1.6], {3: 1.6}),
        ([1.0, 1.4], {}),
        ([1.0, 2.0], {1: 2.0}),
        ([3.0, 1.0, 1.0, 3.0], {0: 3.0, 3: 3.0}),
        ([1.0], {}),
        ([0.001, 0.004], {}),
    ],
)
def test_a_rank_is_slow_by_the_median_of_the_others(own, slow):
    assert slow_ranks(own) == pytest.approx(slow)


@pytest.mark.gpu
def test_own_time_on_a_gpu_is_read_from_its_stream():
    pace = Pace(torch.device("cuda"))
    for _ in range(FEWEST):
        torch.cuda._sleep(20_000_000)
        with pace.waiting():
            torch.cuda._sleep(200_000_000)
        pace.update_done()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    torch.cuda._sleep(20_000_000)
    end.record()
    end.synchronize()
    assert pace.own_seconds() == pytest.approx(begin.elapsed_time(end) / 1000, rel=0.5)

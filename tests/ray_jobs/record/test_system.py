"""Samples of the machine, for MLflow's charts of system metrics."""

import json
import time
from pathlib import Path

import pytest

from ray_jobs.record.system import SystemMonitor, read_gpus


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample(path: Path, at_least: int) -> None:
    monitor = SystemMonitor(path, every_s=0.05)
    end = time.monotonic() + 20
    while time.monotonic() < end and (not path.exists() or len(lines(path)) < at_least):
        time.sleep(0.02)
    monitor.close()


def test_samples_have_the_names_that_mlflow_charts_and_plausible_values(tmp_path):
    sample(tmp_path / "system.jsonl", 2)
    first = lines(tmp_path / "system.jsonl")[0]
    assert 0 <= first["system/cpu_utilization_percentage"] <= 100
    assert first["system/system_memory_usage_megabytes"] > 100
    assert first["system/disk_available_megabytes"] > 0
    assert first["system/network_receive_megabytes"] >= 0


def test_a_driver_started_again_goes_on_counting(tmp_path):
    path = tmp_path / "system.jsonl"
    sample(path, 2)
    sample(path, 5)
    steps = [line["step"] for line in lines(path)]
    assert steps == list(range(len(steps)))


def test_the_answer_of_nvidia_smi_is_read_in_megabytes_and_what_is_not_told_is_left_out():
    found = read_gpus("0, 87, 40960, 81920, 312.5\n1, [N/A], 0, 81920, [Not Supported]\n")
    assert found == pytest.approx(
        {
            "gpu_0_utilization_percentage": 87.0,
            "gpu_0_memory_usage_megabytes": 40960 * 1.048576,
            "gpu_0_memory_usage_percentage": 50.0,
            "gpu_0_power_usage_watts": 312.5,
            "gpu_1_memory_usage_megabytes": 0.0,
            "gpu_1_memory_usage_percentage": 0.0,
        }
    )

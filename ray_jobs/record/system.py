"""What the machine of the driver is doing, sampled for MLflow under the names that its charts know."""

import csv
import io
import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ray_jobs.record.journal import append_line

EVERY_S = 10.0
GPU_FIELDS = {
    "index": "",
    "utilization.gpu": "utilization_percentage",
    "memory.used": "memory_usage_megabytes",
    "memory.total": "",
    "power.draw": "power_usage_watts",
}
"""What nvidia-smi is asked, and how MLflow calls it."""


class SystemMonitor:
    """A thread that adds a line to ``path`` every ``every_s`` seconds; a driver started again goes on counting."""

    def __init__(self, path: Path, every_s: float = EVERY_S) -> None:
        self._path, self._every_s, self._lock = path, every_s, threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more samples. One that hangs is not waited for."""
        self._over.set()
        self._thread.join(0.5)

    def _loop(self) -> None:
        count = self._path.read_bytes().count(b"\n") if self._path.exists() else 0
        network = psutil.net_io_counters()
        psutil.cpu_percent()  # the share since the last call: the first one means nothing
        while not self._over.wait(self._every_s):
            values = machine(self._path.parent, network) | gpus()
            line = {f"system/{name}": round(value, 1) for name, value in values.items()}
            with suppress(OSError):  # a full disk is told by those who cannot do without it
                append_line(self._path, {"step": count, "time": round(time.time(), 3), **line}, self._lock)
            count += 1


def machine(folder: Path, before: Any) -> dict[str, float]:
    """Processors, memory, network since ``before``, and the disk that holds ``folder``; megabytes are 10^6 bytes."""
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(str(folder)), psutil.net_io_counters()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": 100 * memory.used / memory.total,
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / 1e6,
        "disk_available_megabytes": disk.free / 1e6,
        "network_receive_megabytes": (network.bytes_recv - before.bytes_recv) / 1e6,
        "network_transmit_megabytes": (network.bytes_sent - before.bytes_sent) / 1e6,
    }


def gpus() -> dict[str, float]:
    """What nvidia-smi tells of each GPU of this machine; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=os.environ | {"LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return read_gpus(done.stdout) if done.returncode == 0 else {}


def read_gpus(table: str) -> dict[str, float]:
    """The answer of nvidia-smi as numbers; what a GPU does not tell is left out. Its mebibytes become megabytes."""
    values: dict[str, float] = {}
    for row in csv.reader(io.StringIO(table)):
        cells = dict(zip(GPU_FIELDS, (_number(cell) for cell in row), strict=True))
        index, used, total = cells["index"], cells["memory.used"], cells["memory.total"]
        found = {name: cells[field] for field, name in GPU_FIELDS.items() if name}
        if used is not None:
            found["memory_usage_megabytes"] = used * 2**20 / 1e6
            found["memory_usage_percentage"] = 100 * used / total if total else None
        values |= {f"gpu_{index:.0f}_{name}": value for name, value in found.items() if value is not None}
    return values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

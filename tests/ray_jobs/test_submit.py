import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env import packaging

from dpo_core.metrics import read_complete_rows
from tests.ray_jobs.jobs import ROOT, write_job
from tests.tiny_data import make_pairs
from tests.tiny_models import make_tiny_sd

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def cluster():
    """A head node as ``ray start --head`` makes it; its processes are the only ones that are ended."""
    scratch = tempfile.mkdtemp(prefix="ray")  # Ray's socket paths must be short
    dashboard, agent = free_port(), free_port()
    # Nothing of a Ray that other tests run in this process may reach the one that is started here.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-for-this-test-0123456789"}
    command = [*RAY, "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2", f"--temp-dir={scratch}",
               "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
               f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={free_port()}",
               f"--metrics-export-port={free_port()}", f"--ray-client-server-port={free_port()}",
               "--disable-usage-stats"]  # fmt: skip
    with open(Path(scratch) / "head.log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if listening(dashboard) and listening(agent):  # a job is refused until the node's agent is there
                break
            assert head.poll() is None, (Path(scratch) / "head.log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def status_of_submission(address: str, token: str | None) -> int:
    """The HTTP status of a job sent to the head without Ray's own client."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{address}/api/jobs/", json.dumps({"entrypoint": "true"}).encode(), headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_what_a_job_uploads_is_the_program_and_small(tmp_path):
    package = tmp_path / "package.zip"
    packaging.create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 16 << 20
    names = set(zipfile.ZipFile(package).namelist())
    assert {"ray_jobs/train.py", "tune_configs/train/sd15_dpo_full.yaml", "pyproject.toml"} <= names
    assert any(name.startswith("dpo_core/embedded/model/") and name.endswith(".safetensors") for name in names)
    left = (".git/", ".venv/", "tests/", "runs/", "mlruns/")
    assert [name for name in names if name.startswith(left)] == []


@pytest.mark.ray
def test_a_training_job_can_be_submitted_to_a_cluster(cluster, tmp_path):
    address, environment = cluster
    model, pairs = make_tiny_sd(tmp_path / "model"), make_pairs(tmp_path / "pairs", 16)
    config = write_job(tmp_path, model, pairs, workers=1, steps=2)
    submit = [*RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
    stranger = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    stranger["HOME"] = str(tmp_path)  # where a token of the user might lie
    refused = subprocess.run([*submit, "true"], env=stranger, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert refused.returncode == 1
    assert "Authentication required" in refused.stdout + refused.stderr
    assert status_of_submission(address, None) == 401
    assert status_of_submission(address, "another-token-0123456789") == 403
    entry = [sys.executable, "-m", "ray_jobs.train", "--config", str(config)]
    done = subprocess.run([*submit, *entry], env=environment, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert [row["step"] for row in read_complete_rows(tmp_path / "runs" / "run" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "runs" / "run" / "model" / "model_index.json").exists()

"""The ``palate`` command as a user types it."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ray_jobs import cli

ROOT = Path(__file__).parents[2]


def run_python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=ROOT, timeout=280)


def test_help_lists_every_verb_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, summary in cli.VERBS.items():
        assert any(line.split() == [verb, *summary.split()] for line in text.splitlines())


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from ray_jobs.cli import main; assert main(['--help']) == 0; print(*sys.modules)"
    result = run_python(code)
    assert {"ray", "mlflow", "torch", "pandas", "numpy"} & set(result.stdout.split()) == set()
    assert "ray_jobs.cli" in result.stdout.split()


def test_help_of_the_verbs_imports_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys; from ray_jobs.cli import VERBS, main\n"
        "for verb in VERBS:\n"
        "    assert main([verb, '--help']) == 0\n"
        "    assert not {'ray', 'mlflow'} & set(sys.modules), verb"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: palate ") == len(cli.VERBS)


@pytest.mark.parametrize("module", ["import_pairs", "prepare", "patches"])
def test_a_module_run_by_itself_shows_the_help_of_its_verb(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = module.removesuffix("_pairs")
    assert cli.main([verb, "--help"]) == 0
    result = subprocess.run(
        [sys.executable, "-m", f"ray_jobs.{module}", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=280
    )
    assert result.stdout == capsys.readouterr().out


def test_version_is_the_one_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.strip() == project["version"]


def test_unknown_verb_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "trian: there is no such verb; did you mean 'train'?\n"


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: palate VERB" in capsys.readouterr().out


def test_reader_that_goes_away_is_no_error() -> None:
    result = subprocess.run(
        f"{sys.executable} -m ray_jobs.cli --help | true", shell=True, capture_output=True, text=True, cwd=ROOT
    )
    assert result.stderr == ""


def test_interrupt_ends_a_verb_with_one_line() -> None:
    code = (
        "import time; from dpo_core.section import Section; from ray_jobs.config import run_verb\n"
        "def run(config): print('started', flush=True); time.sleep(60)\n"
        "raise SystemExit(run_verb(Section, run, lambda config: [], [], 'Waits.'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")

"""House rules that can be seen from outside."""

import glob
import re
import statistics
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dpo_core", "eval", "ray_jobs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_300_lines() -> None:
    python = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    assert [f"{path.relative_to(ROOT)}: {length(path)}" for path in python if length(path) > 300] == []


def test_median_module_has_at_most_120_lines() -> None:
    assert statistics.median(length(path) for path in MODULES if length(path)) <= 120


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_named_in_the_readme_of_its_package(package: str) -> None:
    readme = (ROOT / package / "README.md").read_text(encoding="utf-8")
    modules = [path for path in MODULES if path.is_relative_to(ROOT / package) and path.name != "__init__.py"]
    assert [
        str(path.relative_to(ROOT)) for path in modules if f"`{path.relative_to(ROOT / package)}`" not in readme
    ] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_readme_names_no_file_that_is_gone(package: str) -> None:
    readme = (ROOT / package / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`", readme)
    assert [name for name in named if not (ROOT / package / name).exists() and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_readme_dates_its_decisions(package: str) -> None:
    _, _, decisions = (ROOT / package / "README.md").read_text(encoding="utf-8").partition("## Decisions")
    assert re.search(r"\d{4}-\d{2}-\d{2}", decisions)


def test_lock_pins_every_package_and_names_no_host() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert requirements
    assert [line for line in requirements if not re.match(r"^[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+( ;.*)?$", line)] == []
    assert [line for line in lines if "://" in line or " @ " in line] == []


def test_installed_package_carries_its_files_that_are_not_python() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    left_out = []
    for package in PACKAGES:
        carried = {
            ROOT / package / name
            for pattern in patterns[package]
            for name in glob.glob(pattern, root_dir=ROOT / package, recursive=True)
        }
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        left_out += [str(path.relative_to(ROOT)) for path in files if path not in carried and path.name != "README.md"]
    assert left_out == []

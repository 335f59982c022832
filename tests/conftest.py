"""What holds for every test: quiet, two cores, nothing sent anywhere, shapes checked in dpo_core."""

import os
import sys
from pathlib import Path

QUIET = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "MPLBACKEND": "agg",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks the real service what kind a bucket is, whatever the endpoint
}

for name, value in QUIET.items():
    os.environ.setdefault(name, value)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests import typechecking  # noqa: E402

# The same examples every time, however slow the machine is.
settings.register_profile("palate", deadline=None, derandomize=True)
settings.load_profile("palate")

early = [name for name in sys.modules if name.partition(".")[0] == "dpo_core"]
assert not early, f"imported before its shapes could be checked: {early}"
install_import_hook(["dpo_core"], f"{typechecking.__name__}.checked")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (``make test``), a file stays in one process, and all that share a Ray cluster in the same one."""
    sharing = {item.path for item in items if "ray_cluster" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in sharing else str(item.path)))


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline of 16-pixel images with random weights."""
    from tests.tiny_models import make_tiny_sd

    return make_tiny_sd(tmp_path_factory.mktemp("tiny-sd"))


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 decided pairs of coloured noise."""
    from tests.tiny_data import make_pairs

    return make_pairs(tmp_path_factory.mktemp("tiny-pairs"), 24)

from pathlib import Path

import pytest

from eval.models import load_pipeline
from tests.tiny_models import make_tiny_sd


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return load_pipeline(tiny_folder)

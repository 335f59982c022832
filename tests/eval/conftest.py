from pathlib import Path

import pytest

from eval.models import load_pipeline
from tests.eval.tiny_pipeline import make_tiny_pipeline


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return load_pipeline(tiny_folder)

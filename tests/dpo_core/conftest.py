from pathlib import Path

import pytest

from tests.tiny_data import make_pairs
from tests.tiny_models import make_tiny_sd


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("tiny-sd"))


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("tiny-pairs"), 24)

import math
import resource

import pytest

from dpo_core.metrics import read_complete_rows
from tests.benchmarks.full_size import make_sd15, run


@pytest.mark.slow
def test_an_adapter_step_of_an_860_million_parameter_unet_fits_in_24_gib(tmp_path):
    make_sd15(tmp_path / "sd15")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    peak, _ = run("sd15", tmp_path, ["run.name=fp32", "loop.precision=fp32"])
    assert max(peak, before) < 24
    (row,) = read_complete_rows(tmp_path / "runs" / "fp32" / "metrics.jsonl")
    assert row["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert math.isfinite(row["train/grad_norm"])

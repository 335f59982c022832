"""Weights shared out between the workers of Ray Train, and a copy of the run that a new machine goes on from."""

import shutil

import pytest
import torch

from dpo_core.metrics import read_complete_rows
from tests.ray_jobs.jobs import final_weights, palate, write_job


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_workers_that_share_the_weights_end_where_one_process_does(tiny_sd, tiny_pairs, tmp_path, method):
    given = (f"policy.method={method}", "optim.eps=1e-3", "loop.max_steps=2")
    alone = write_job(tmp_path, tiny_sd, tiny_pairs, name="alone")
    done = palate("train", "--config", alone, *given)
    assert done.returncode == 0, done.stderr
    shared = write_job(tmp_path, tiny_sd, tiny_pairs, name="shared", workers=2)
    mirror = f"loop.mirror={tmp_path / 'far'}"
    done = palate("train", "--config", shared, *given, "policy.sharding=full", mirror)
    assert done.returncode == 0, done.stderr
    folders = [tmp_path / "runs" / name for name in ("alone", "shared")]
    expected, found = map(final_weights, folders)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-4) for name in expected)
    for one, two in zip(*(read_complete_rows(folder / "metrics.jsonl") for folder in folders), strict=True):
        assert one["train/grad_norm"] == pytest.approx(two["train/grad_norm"], rel=1e-2)
    shutil.rmtree(folders[1])
    done = palate("train", "--config", shared, *given, mirror, "cluster.num_workers=0")
    assert done.returncode == 0, done.stderr
    again = final_weights(folders[1])
    assert all(torch.equal(found[name], again[name]) for name in found)

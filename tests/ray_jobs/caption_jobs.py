"""Captioning jobs against a chat server of the test."""

from pathlib import Path

import pyarrow.parquet as pq

from dpo_core.data.section import DataSection
from ray_jobs.caption import CaptionJob
from ray_jobs.captioning.section import DescribeByEndpoint, PerturbByEndpoint
from ray_jobs.shards.job import shard_files
from tests.ray_jobs.chat_server import ChatServer


def job(server: ChatServer, pairs: Path, out: Path, *, perturbed: bool = True, endpoint=None, **settings) -> CaptionJob:
    common = {"base_url": server.base_url, "model": server.model, "max_retries": 0, **(endpoint or {})}
    describe = {"describe": DescribeByEndpoint(**common)}
    perturb = {"perturb": PerturbByEndpoint(**common, instruction="{change}: {caption}")} if perturbed else {}
    data = DataSection(paths=[str(pairs)], max_quarantined_share=0.6)
    return CaptionJob(**{"data": data, "out": str(out), "shard_pairs": 2, **describe, **perturb, **settings})


def rows_of(out: Path) -> list[dict]:
    return [row for file in shard_files(out) for row in pq.read_table(file).to_pylist()]

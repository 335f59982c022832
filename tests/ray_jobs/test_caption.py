import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import open_clip
import pytest
import torch
from rich.console import Console

from dpo_core.data.plan import Plan
from dpo_core.data.section import DataSection
from eval.scorers.clip import CLIPScore
from ray_jobs.caption import CaptionJob, main, shard_job
from ray_jobs.captioning.section import GivenCaptions
from ray_jobs.cluster import ClusterSection
from ray_jobs.config import load_config, save_config
from ray_jobs.shards.job import read_record, run_shards, shard_files
from tests.ray_jobs.caption_jobs import job, rows_of
from tests.ray_jobs.chat_server import ChatServer, chat_server
from tests.ray_jobs.colour_pairs import colour_pairs, named

pytestmark = pytest.mark.timeout(600)  # a cluster on a busy machine takes minutes to start

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)


@pytest.fixture
def pairs(tmp_path) -> Path:
    return colour_pairs(tmp_path / "pairs", 6)


def test_variant_c_has_a_caption_of_each_image_and_keeps_the_prompt(pairs, tmp_path):
    with chat_server() as server:
        run_shards(shard_job(job(server, pairs, tmp_path / "out", perturbed=False)), QUIET)
        asked = {call.text for call in server.calls}
    rows = rows_of(tmp_path / "out")
    assert [(row["caption_0"], row["caption_1"]) for row in rows] == [(named(i, 0), named(i, 1)) for i in range(6)]
    assert [row["caption"] for row in rows] == [f"prompt {{number}} {i}" for i in range(6)]
    assert {row["model_0"] for row in rows} == {"some model"}
    assert all(any(f"the prompt: prompt {{number}} {i}\n" in text for text in asked) for i in range(6))
    trained = Plan.build(DataSection(paths=[str(tmp_path / "out")], captions="per_image"))
    assert trained.pair_ids.to_pylist() == [str(i) for i in range(6)]


@pytest.mark.parametrize("perturb_of", ["chosen", "rejected"])
def test_variants_p_and_h_perturb_the_losers_caption_only(pairs, tmp_path, perturb_of):
    with chat_server() as server:
        work = job(server, pairs, tmp_path / "out", variants=["h", "p", "c"], strength="weak", perturb_of=perturb_of)
        run_shards(shard_job(work), QUIET)
        calls = len(server.calls)
    assert calls == 6 * 4
    for i, row in enumerate(rows_of(tmp_path / "out")):
        won = i % 2
        of = won if perturb_of == "chosen" else 1 - won
        assert (row[f"caption_p_{won}"], row[f"caption_h_{won}"]) == (f"prompt {{number}} {i}", named(i, won))
        lost = row[f"caption_p_{1 - won}"], row[f"caption_h_{1 - won}"]
        assert [re.sub(r"^not describes .* four words in ten being different: ", "", text) for text in lost] == [
            f"prompt {{number}} {i}",
            named(i, of),
        ]
        assert (row["caption_0"], row["caption_1"]) == (row["caption_h_0"], row["caption_h_1"])
        assert (row["caption_c_0"], row["caption_c_1"]) == (row["generated_0"], row["generated_1"])
        assert lost == (row["perturbed_prompt"], row["perturbed_caption"])


@pytest.mark.parametrize(("variants", "perturb_of", "calls"), [(["p"], "rejected", 6), (["h"], "chosen", 12)])
def test_nothing_is_asked_that_no_variant_needs(pairs, tmp_path, variants, perturb_of, calls):
    with chat_server() as server:
        work = job(server, pairs, tmp_path / "out", variants=variants, perturb_of=perturb_of)
        record = run_shards(shard_job(work), QUIET)
    assert record.totals["calls"] == len(server.calls) == calls


def test_captions_that_are_there_already_are_perturbed_without_asking_again(pairs, tmp_path):
    with chat_server() as server:
        run_shards(shard_job(job(server, pairs, tmp_path / "c", perturbed=False)), QUIET)
        server.calls.clear()
        again = job(server, tmp_path / "c", tmp_path / "h", variants=["h"], describe=GivenCaptions())
        record = run_shards(shard_job(again), QUIET)
    assert record.totals["calls"] == len(server.calls) == 6
    assert {call.colour for call in server.calls} == {None}
    assert [row[f"caption_{i % 2}"] for i, row in enumerate(rows_of(tmp_path / "h"))] == [
        named(i, i % 2) for i in range(6)
    ]
    with chat_server() as server, pytest.raises(ValueError, match="generated_0, generated_1 are missing"):
        shard_job(job(server, pairs, tmp_path / "x", variants=["c"], describe=GivenCaptions()))


def test_another_model_or_instruction_is_another_set_and_another_address_is_not(pairs, tmp_path):
    with chat_server() as server:
        run_shards(shard_job(job(server, pairs, tmp_path / "out", perturbed=False)), QUIET)
        elsewhere = {"concurrency": 3, "base_url": "http://elsewhere/v1", "prompt_price": 1.0}
        run_shards(shard_job(job(server, pairs, tmp_path / "out", perturbed=False, endpoint=elsewhere)), QUIET)
        other = job(server, pairs, tmp_path / "out", perturbed=False, endpoint={"temperature": 0.7})
        with pytest.raises(ValueError, match=r"describe\.temperature 0\.0 there, 0\.7 here"):
            run_shards(shard_job(other), QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"variants": ["p"], "perturb": None}, "need captions perturbed"), ({"variants": ["c", "c"]}, "named twice")],
)
def test_variants_that_cannot_be_made_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        job(ChatServer("http://localhost/v1"), tmp_path, tmp_path / "out", **settings)


def test_the_gap_of_the_clip_scores_is_kept_for_each_pair_and_reported(pairs, tmp_path):
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    folder = tmp_path / "clip"
    folder.mkdir()
    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(open_clip.CLIP(**config["model_cfg"]).state_dict(), folder / "open_clip_pytorch_model.bin")
    scorer = CLIPScore(model=f"local-dir:{folder}", weights=None)
    with chat_server() as server:
        record = run_shards(shard_job(job(server, pairs, tmp_path / "out", variants=["h"], scorer=scorer)), QUIET)
    rows = rows_of(tmp_path / "out")
    for i, row in enumerate(rows):
        assert row["clip_gap"] == pytest.approx(row[f"clip_{i % 2}"] - row[f"clip_{1 - i % 2}"])
    assert record.report["CLIPScore gap"] == pytest.approx(sum(row["clip_gap"] for row in rows) / 6, abs=1e-4)
    assert record.report["95 % interval"][0] < record.report["CLIPScore gap"] < record.report["95 % interval"][1]


def test_the_dry_run_tells_calls_tokens_and_cost_and_asks_nothing(pairs, tmp_path, capsys):
    with chat_server() as server:
        prices = {"prompt_price": 1.0, "answer_price": 4.0, "max_tokens": 100}
        work = job(server, pairs, tmp_path / "out", variants=["h"], endpoint=prices)
        save_config(work, tmp_path / "job.yaml")
        assert main(["--config", str(tmp_path / "job.yaml"), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "12 calls of tiny-vlm" in shown
    assert "about 12,000 tokens sent (expected_tokens), at most 1,200 answered, so 0.02" in shown
    assert "perturb 6 calls" in shown
    assert not server.calls
    assert not (tmp_path / "out").exists()


def test_a_killed_job_asks_nothing_again_for_its_finished_shards_and_counts_only_the_others(tmp_path, capsys):
    pairs, out = colour_pairs(tmp_path / "pairs", 8), tmp_path / "out"
    with chat_server(hold=5) as server:
        save_config(job(server, pairs, out, perturbed=False, endpoint={"concurrency": 1}), tmp_path / "job.yaml")
        command = [sys.executable, "-m", "ray_jobs.caption", "--config", str(tmp_path / "job.yaml")]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        end = time.monotonic() + 120
        while len(server.calls) < 6 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert sorted(file.name for file in out.iterdir()) == ["job.json", "pairs-00000.parquet.part"]
    assert not read_record(out).complete
    first = Counter(call.colour for call in server.calls)
    assert main(["--config", str(tmp_path / "job.yaml"), "--dry-run"]) == 0
    assert "12 calls of tiny-vlm" in " ".join(capsys.readouterr().out.split())
    with chat_server() as server:
        run_shards(shard_job(job(server, pairs, out, perturbed=False)), QUIET)
    kept = {f"{2 * i}-{2 * i + 1}-{25 * image}" for i in (0, 1) for image in (0, 1)}
    assert kept <= set(first)
    assert Counter(call.colour for call in server.calls) == {
        named(i, image).removesuffix(" square"): 1 for i in range(2, 8) for image in (0, 1)
    }
    assert [row["caption_0"] for row in rows_of(out)] == [named(i, 0) for i in range(8)]


def test_an_interrupt_ends_a_job_at_once_though_the_server_never_answers(tmp_path):
    pairs, out = colour_pairs(tmp_path / "pairs", 8), tmp_path / "out"
    with chat_server(hold=4) as server:
        save_config(job(server, pairs, out, perturbed=False, endpoint={"max_retries": 6}), tmp_path / "job.yaml")
        command = [sys.executable, "-m", "ray_jobs.caption", "--config", str(tmp_path / "job.yaml")]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        end = time.monotonic() + 120
        while len(server.calls) < 8 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < 10
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize("preset", sorted((ROOT / "tune_configs" / "data").glob("caption*.yaml")), ids=lambda p: p.stem)
def test_presets_are_whole(preset):
    assert load_config(CaptionJob, preset, ["data.paths=[x]"]).out.endswith(preset.stem)
    assert preset.read_text().startswith("# ")


@pytest.mark.ray
def test_ray_workers_write_the_captions_that_one_process_writes(pairs, tmp_path, ray_cluster):
    with chat_server() as server:
        alone = job(server, pairs, tmp_path / "a", variants=["h", "p"])
        shared = alone.model_copy(update={"out": str(tmp_path / "b"), "cluster": ClusterSection(num_workers=2)})
        records = [run_shards(shard_job(work), QUIET) for work in (alone, shared)]
    assert records[0] == records[1]
    ours, theirs = ([Path(file).read_bytes() for file in shard_files(tmp_path / name)] for name in "ab")
    assert ours == theirs
    assert len(ours) == 3

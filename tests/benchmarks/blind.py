"""Is the judge blind where there is nothing to see, and does it see what is there?

Blind: the embedded model meets itself. Both sides draw the same prompts, but from noise of their own: with equal seeds
they would draw equal images, and any judge could tell. Every run goes the whole way, drawing, scores, statistics,
verdict, and should end with "No difference shown".

Seeing: the embedded model is held against a damaged copy of itself (noise on the weights of its U-Net), or a model that
was trained from it against the embedded one; both draw from equal noise.

    python -m tests.benchmarks.blind blind 0 100      runs 0 to 99; those there are kept, so it can be done in pieces
    python -m tests.benchmarks.blind seeing 0 20      or, with a model that was trained: seeing 0 20 runs/demo/dpo/model
    python -m tests.benchmarks.blind seeing-all 0 20  with every held-out prompt, twice as many
    python -m tests.benchmarks.blind summary
    python -m tests.benchmarks.blind redrawn 2000     runs put together from the scores of those: for every prompt two
                                                      of its images by chance, one for either side
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from dpo_core.embedded import resolve_model
from eval.comparison import Comparison
from eval.evaluation import evaluate
from eval.generate import SamplerSection, make_missing, plan_images
from eval.models import load_pipeline
from eval.plan import ComparisonPlan
from eval.prompts import load_prompts
from eval.stats import mean_interval, sign_flip_p
from eval.verdict import verdicts

OUT = Path("runs/blind")
PROMPTS = 72
DAMAGE = 0.3
"""Standard deviation of the noise on each weight, in standard deviations of its tensor."""
SETTINGS = {"scheduler": "dpmpp", "num_inference_steps": 12, "guidance_scale": 5.0}


def plan_of(models: dict[str, str], seed: int, limit: int | None = PROMPTS) -> ComparisonPlan:
    return ComparisonPlan.model_validate(
        {
            "models": models,
            "prompts": "shapes_heldout",
            "limit": limit,
            "seed": seed,
            "sampler": {**SETTINGS, "batch_size": 36},
            "scorers": [{"kind": "shapes"}],
        }
    )


def draw_side(pipeline, folder: Path, seed: int) -> None:
    """A folder of images and their prompts, as if it had come from somewhere else."""
    sampler = SamplerSection(**SETTINGS, batch_size=36)
    prompts = load_prompts("shapes_heldout", PROMPTS)
    rows = plan_images("side", "embedded", prompts, [seed], sampler)
    make_missing(pipeline, rows, sampler, folder)
    lines = [json.dumps({"file": row["file"], "prompt": row["prompt"]}) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines))


def blind_run(pipeline, run: int) -> Comparison:
    folder = OUT / "images" / f"blind-{run}"
    for side in (0, 1):
        draw_side(pipeline, folder / f"side{side}", 2 * run + side)
    models = {"base": str(folder / "side0"), "same": str(folder / "side1")}
    return evaluate(plan_of(models, 0), folder / "result")


def seeing_run(kind: str, run: int, better: str | None) -> Comparison:
    embedded = resolve_model("embedded")
    models = {"base": str(damaged_copy()) if better is None else embedded, "better": better or embedded}
    plan = plan_of(models, 10_000 + run, None if kind == "seeing-all" else PROMPTS)
    return evaluate(plan, OUT / "images" / f"{kind}-{run}")


def damaged_copy() -> Path:
    folder = OUT / "damaged"
    if not folder.is_dir():
        pipeline = load_pipeline(resolve_model("embedded"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in pipeline.unet.parameters():
                spread = weight.std() if weight.numel() > 1 else torch.tensor(0.0)
                weight.add_(DAMAGE * spread * torch.randn(weight.shape, generator=generator))
        pipeline.save_pretrained(folder)
    return folder


def done(kind: str) -> dict[int, dict]:
    file = OUT / f"{kind}.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return {row["run"]: row for row in map(json.loads, lines)}


def work(kind: str, first: int, last: int, better: str | None = None) -> None:
    kind = kind if better is None else "seeing-trained"
    OUT.mkdir(parents=True, exist_ok=True)
    there, pipeline = done(kind), load_pipeline(resolve_model("embedded"))
    for run in range(first, last):
        if run in there:
            continue
        comparison = blind_run(pipeline, run) if kind == "blind" else seeing_run(kind, run, better)
        rival = next(name for name in comparison.models if name != comparison.baseline)
        d = comparison.difference(rival)
        row: dict[str, Any] = {
            "run": run,
            "shown": d.shown,
            "delta": d.delta,
            "low": d.low,
            "high": d.high,
            "p": d.p,
        }
        row |= {"win_rate": d.win_rate, "verdict": verdicts(comparison)[0]}
        for other in comparison.differences:
            row[f"excludes zero: {other.metric}"] = other.low > 0 or other.high < 0
        with (OUT / f"{kind}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(run, row["verdict"], flush=True)


def summary() -> None:
    for kind in ("blind", "seeing", "seeing-all", "seeing-trained"):
        rows = list(done(kind).values())
        if not rows:
            continue
        shown = sum(row["shown"] for row in rows)
        print(f"{kind}: {len(rows)} runs, a difference shown in {shown}, none in {len(rows) - shown}")
        counts: dict[str, int] = defaultdict(int)
        for row in rows:
            for name, value in row.items():
                if name.startswith("excludes zero"):
                    counts[name] += value
        print("   " + ", ".join(f"{name.split(': ')[1]} {count}" for name, count in counts.items()))
        print(f"   mean delta {sum(row['delta'] for row in rows) / len(rows):+.4f}")


def redrawn(runs: int) -> None:
    """Every scored image of the blind runs came from one model, so any two of a prompt can meet."""
    scores: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(OUT.glob("images/blind-*/result/scores.parquet")):
        for row in pq.read_table(file, columns=["column", "prompt_index", "score"]).to_pylist():
            scores[row["column"]][row["prompt_index"]].append(row["score"])
    for column, share in (("correct", True), ("score", False), ("quality", False)):
        table = np.array(list(scores[column].values()))
        rng, tested, zero, both = np.random.default_rng(0), 0, 0, 0
        for _ in range(runs):
            one, other = np.array([rng.choice(row, 2, replace=False) for row in table]).T
            low, high = mean_interval(one - other, bound=1.0 if share else None)
            small, out = sign_flip_p(one - other, resamples=999) < 0.05, low > 0 or high < 0
            tested, zero, both = tested + small, zero + out, both + (small and out)
        found = f"p < 0.05 in {tested / runs:.1%}, interval without zero {zero / runs:.1%}, both {both / runs:.1%}"
        print(f"shapes/{column}, {table.shape[1]} images of {len(table)} prompts: {found}")


def seen_again(runs: int) -> None:
    """For every prompt one of the seeds of the seeing runs by chance: how often is the damage found?"""
    pairs: dict[int, list[float]] = defaultdict(list)
    for file in sorted(OUT.glob("images/seeing-*/scores.parquet")):
        rows = [row for row in pq.read_table(file).to_pylist() if row["column"] == "correct"]
        sides = {(row["model"], row["prompt_index"]): row["score"] for row in rows}
        for model, prompt in sides:
            if model == "base":
                pairs[prompt].append(sides["better", prompt] - sides["base", prompt])
    drawn = max(map(len, pairs.values()))  # runs of fewer prompts are parts of larger ones: those that all have drawn
    rng, found = np.random.default_rng(0), 0
    table = np.array([deltas for deltas in pairs.values() if len(deltas) == drawn])
    for _ in range(runs):
        deltas = rng.permuted(table, axis=1)[rng.permutation(len(table))[:PROMPTS], 0]
        low, high = mean_interval(deltas, bound=1.0)
        found += sign_flip_p(deltas, resamples=999) < 0.05 and (low > 0 or high < 0)
    effect = f"{100 * table.mean():+.1f} points"
    print(f"damaged and whole, {effect}, {table.shape[1]} seeds of {len(table)} prompts: found in {found / runs:.1%}")


if __name__ == "__main__":
    if sys.argv[1:] == ["summary"]:
        summary()
    elif len(sys.argv) == 3 and sys.argv[1] == "redrawn":
        redrawn(int(sys.argv[2]))
        seen_again(int(sys.argv[2]))
    elif len(sys.argv) in (4, 5) and sys.argv[1] in ("blind", "seeing", "seeing-all"):
        work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    else:
        raise SystemExit(__doc__)

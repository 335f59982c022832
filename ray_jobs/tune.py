"""palate tune: search beta, learning rate and any other field; every trial is judged by its images."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from dpo_core.metrics import read_complete_rows
from dpo_core.section import Section
from eval.comparison import Comparison, compare_scores
from eval.evaluation import Piece, draw_and_score
from eval.generate import plan_images
from eval.plan import ComparisonPlan
from eval.presets import PlannedSampler
from eval.prompts import Split
from eval.scorers import AnyScorer
from eval.scorers.shapes import Shapes
from ray_jobs.cluster import start_ray
from ray_jobs.config import run_verb, save_config
from ray_jobs.evaluate import locate
from ray_jobs.record.tracking import track_run, tracking_uri
from ray_jobs.search import SearchSection, at_point, check_space, label_of
from ray_jobs.train import run_training
from ray_jobs.training.job import TrainJob

BASE = "base"


class JudgeSection(Section):
    """How the trials are judged: each draws the same prompts from the same noise, then all meet the base model."""

    prompts: str = "shapes_heldout"
    """A prompt set by name, or a file of prompts."""
    limit: int | None = Field(default=48, ge=1)
    """How many prompts of the set; null for all."""
    split: Split = "dev"
    """The part of the prompts that settings are chosen by, so that ``report`` is left for the proof."""
    images_per_prompt: int = Field(default=1, ge=1)
    """Images of each prompt."""
    seed: int = 0
    """Seed of each prompt's first image."""
    sampler: PlannedSampler = PlannedSampler()
    """How images are drawn."""
    scorers: list[AnyScorer] = Field(default=[Shapes()], min_length=1)
    """Who judges; the first one's primary column decides."""


class TuneJob(Section):
    """A sweep: one training job, the space around it, and how its trials are judged."""

    train: TrainJob = TrainJob()
    """The job that every trial starts from; ``run`` names the sweep."""
    search: SearchSection
    """What is varied."""
    judge: JudgeSection = JudgeSection()
    """What decides."""


def sweep_dir(job: TuneJob) -> Path:
    return (Path(job.train.run.storage) / job.train.run.name).resolve()


def trial_job(job: TuneJob, point: dict[str, Any]) -> TrainJob:
    """The training job of one trial: its run lies in the sweep's folder and is recorded by the driver."""
    trial = at_point(job.train, point)
    run = trial.run.model_copy(update={"storage": str(sweep_dir(job)), "name": label_of(point)})
    return trial.model_copy(update={"run": run, "tracking": trial.tracking.model_copy(update={"enabled": False})})


def plan_of(job: TuneJob, models: dict[str, str]) -> ComparisonPlan:
    judge = job.judge
    return ComparisonPlan(
        models=models,
        baseline=BASE,
        prompts=[judge.prompts],
        limit=judge.limit,
        split=judge.split,
        images_per_prompt=judge.images_per_prompt,
        seed=judge.seed,
        sampler=judge.sampler,
        scorers=judge.scorers,
    )


def judge_model(job: TuneJob, name: str, model: str) -> list[dict[str, Any]]:
    """Draw and score the images of one model in the sweep's folder; an image that is there is not drawn again."""
    source = locate(model)
    plan = plan_of(job, {BASE: model, name: model} if name != BASE else {BASE: model, "itself": model})
    prompts, sampler = plan.load_prompts(), plan.sampler.for_model(source.pipeline_folder)
    rows = plan_images(
        name,
        source.weights,
        [prompt.text for prompt in prompts],
        plan.seeds,
        sampler,
        indices=[prompt.index for prompt in prompts],
        prompt_set=plan.sets[0],
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return draw_and_score(Piece(source, sampler, rows), plan.scorers, sweep_dir(job) / "comparison", device)


def run_sweep(job: TuneJob, console: Console | None = None) -> tuple[Comparison, list[dict[str, Any]]]:
    """Run or finish the sweep; returns the comparison of all trials with the base, and one row per trial, best first.

    What does not change between trials is done once: the latents of ``palate prepare``, the base model's images.
    """
    from ray import tune

    console = console or Console()
    check_space(job.train, job.search)
    out = sweep_dir(job)
    out.mkdir(parents=True, exist_ok=True)
    save_config(job, out / "config.yaml")
    start_ray()
    base_scores = judge_model(job, BASE, job.train.family.model)
    in_process = job.train.cluster.num_workers == 0
    resources = {"cpu": job.search.cpus_per_trial if in_process else 0.1}
    if in_process and job.search.gpus_per_trial:
        resources["gpu"] = job.search.gpus_per_trial
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, job=job), resources),
        param_space={name: dimension_of(job, name) for name in job.search.space},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            search_alg=optuna_search(job),
            num_samples=job.search.trials,
            max_concurrent_trials=job.search.max_concurrent if job.search.algorithm != "optuna" else None,
            reuse_actors=True,  # a process that has trained has everything imported
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(out), verbose=0),
    )
    with console.status(f"{job.train.run.name}: trials are running"):
        results = tuner.fit()
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(results)} trials failed; the first one: {failed[0]}") from failed[0]
    points = {label_of(result.config or {}): result.config or {} for result in results}
    scores = list(base_scores)
    for name in points:
        scores += json.loads((out / name / "scores.json").read_text())
    models = {BASE: job.train.family.model} | {name: str(out / name / "model") for name in points}
    plan = plan_of(job, models)
    comparison = compare_scores(plan, scores, plan.load_prompts())
    rows = [trial_row(comparison, name, point) for name, point in points.items()]
    rows.sort(key=lambda row: -row["delta"])
    (out / "sweep.json").write_text(json.dumps(rows, indent=1))
    record(job, comparison, points)
    return comparison, rows


def dimension_of(job: TuneJob, name: str) -> Any:
    dimension = job.search.space[name]
    return dimension.for_tune() if job.search.algorithm == "grid" else dimension.for_optuna()


def optuna_search(job: TuneJob) -> Any:
    if job.search.algorithm != "optuna":
        return None
    import optuna
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    search = OptunaSearch(sampler=optuna.samplers.TPESampler(seed=job.search.seed), metric="score", mode="max")
    return ConcurrencyLimiter(search, max_concurrent=job.search.max_concurrent)


def run_trial(point: dict[str, Any], job: TuneJob) -> None:
    """What one Tune trial runs: train, draw, score."""
    from ray import tune

    trial = trial_job(job, point)
    folder = run_training(trial, Console(quiet=True))
    scores = judge_model(job, trial.run.name, str(folder / "model"))
    (folder / "scores.json").write_text(json.dumps(scores))
    scorer = job.judge.scorers[0]
    decisive = [row["score"] for row in scores if row["scorer"] == scorer.label and row["column"] == scorer.primary]
    sign = 1 if scorer.higher_is_better else -1
    tune.report({"score": sign * sum(decisive) / len(decisive)})


def trial_row(comparison: Comparison, name: str, point: dict[str, Any]) -> dict[str, Any]:
    difference = comparison.difference(name)
    return {"trial": name, **point, "delta": difference.delta, "low": difference.low, "high": difference.high,
            "win_rate": difference.win_rate}  # fmt: skip


def record(job: TuneJob, comparison: Comparison, points: dict[str, dict[str, Any]]) -> None:
    """One MLflow run for the sweep, one nested below it for each trial."""
    out = sweep_dir(job)
    with track_run(job.train.tracking, out, name=job.train.run.name, config=job) as parent:
        parent_id = parent.wait_for_run_id()
        nested = job.train.tracking.model_copy(update={"uri": tracking_uri(job.train.tracking, out.parent)})
        for name, point in points.items():
            trial = trial_job(job, point)
            difference = comparison.difference(name)
            append_result(out / name, {"eval/delta": difference.delta, "eval/win_rate": difference.win_rate})
            with track_run(nested, out / name, name=name, config=trial, parent_run_id=parent_id):
                pass


def append_result(folder: Path, result: dict[str, float]) -> None:
    """The verdict on a trial as the last row of its metrics, once."""
    rows = read_complete_rows(folder / "metrics.jsonl")
    if not any(key in rows[-1] for key in result):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": rows[-1]["step"], "time": rows[-1]["time"]} | result) + "\n")


def table_of(comparison: Comparison, rows: list[dict[str, Any]], names: list[str]) -> Table:
    """The trials, best first."""
    scale = 100 if comparison.headline.is_share else 1
    table = Table(title=f"{comparison.headline.key}: trial minus base, paired, 95 % intervals")
    for name in names:
        table.add_column(name, justify="right")
    for name in ("delta", "interval", "win rate"):
        table.add_column(name, justify="right")
    for row in rows:
        interval = f"[{scale * row['low']:+.1f}, {scale * row['high']:+.1f}]"
        table.add_row(
            *(f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names),
            f"{scale * row['delta']:+.1f}",
            interval,
            f"{100 * row['win_rate']:.0f} %",
        )
    return table


def plan_rows(job: TuneJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    check_space(job.train, job.search)
    grid = 1
    for dimension in job.search.space.values():
        grid *= len(dimension.values) if dimension.kind == "grid" and job.search.algorithm == "grid" else 1
    prompts = plan_of(job, {BASE: BASE}).load_prompts()
    return [
        ("sweep folder", str(sweep_dir(job))),
        ("trials", f"{grid * job.search.trials}, {job.search.max_concurrent} at a time"),
        ("updates per trial", f"{job.train.loop.max_steps:,}"),
        ("images per trial", f"{len(prompts) * job.judge.images_per_prompt:,}"),
    ]


def main(argv: list[str] | None = None) -> int:
    def run(job: TuneJob) -> None:
        comparison, rows = run_sweep(job)
        Console().print(table_of(comparison, rows, list(job.search.space)))

    return run_verb(schema=TuneJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["tune", *sys.argv[1:]]))

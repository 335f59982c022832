"""palate evaluate: draw the same prompts with several models, score the images, and report who is better."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dpo_core.embedded import resolve_model
from dpo_core.section import Section
from eval.comparison import Comparison, compare_scores
from eval.generate import make_missing, plan_images, write_manifest
from eval.models import base_model, is_lora, load_pipeline, model_hash
from eval.plan import ComparisonPlan
from eval.prompts import load_prompt_set
from eval.report import Reproduce, amount, level, p_text, verdict, write_report
from eval.score import score_images, write_scores
from eval.scorers.base import ScoreFunction, Scorer
from ray_jobs.cluster import start_ray
from ray_jobs.config import run_verb, save_config, to_yaml
from ray_jobs.tracking import TrackingSection, track_run


class TasksSection(Section):
    """How the images are spread over the cluster."""

    images_per_task: int = Field(default=32, ge=1)
    """Images that one task draws and scores; its model is loaded once per worker process."""
    cpus_per_task: float = Field(default=1.0, gt=0)
    """CPUs of a task."""
    gpus_per_task: float | None = Field(default=None, ge=0)
    """GPUs of a task, a fraction shares one; null takes one where the cluster has any."""


class EvaluateJob(ComparisonPlan):
    """A comparison, and where it runs and is kept."""

    out: str = "runs/compare"
    """Folder for images, scores and report, seen by every node under this path. Images already there are kept."""
    title: str = "Model comparison"
    """Head of the report."""
    training_curves: dict[str, str] = {}
    """Label -> metrics.jsonl of a run, shown in the report."""
    tasks: TasksSection = TasksSection()
    tracking: TrackingSection = TrackingSection()


def compare(job: EvaluateJob, console: Console | None = None) -> Comparison:
    """Draw and score on Ray what is not there yet; writes manifest.parquet and scores.parquet into ``job.out``.

    Raises ValueError for fewer than two models, a model that is not there, or whatever a scorer refuses.
    """
    if len(job.models) < 2:
        raise ValueError(f"models: a comparison needs two, given {', '.join(job.models)}")
    out = Path(job.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    prompts = load_prompt_set(job.prompts, job.limit)
    places = {name: locate(model) for name, model in job.models.items()}
    weights = {name: model_hash(folder, base=base) for name, (folder, base) in places.items()}
    rows, work = [], []
    for name, place in places.items():
        mine = plan_images(
            name,
            weights[name],
            [prompt.text for prompt in prompts],
            job.seeds,
            job.sampler,
            indices=[prompt.index for prompt in prompts],
        )
        rows += mine
        step = job.tasks.images_per_task
        work += [(place, mine[start : start + step]) for start in range(0, len(mine), step)]
    scores = run_tasks(job, work, out, console or Console())
    order = {name: i for i, name in enumerate(job.models)}
    scores.sort(key=lambda row: (order[row["model"]], row["prompt_index"], row["seed"]))
    write_manifest(rows, out)
    write_scores(scores, out)
    return compare_scores(job, scores, prompts, weights)


def locate(model: str) -> tuple[str, str | None]:
    """Where a model lies, absolute if it is a folder, and the base under it if it is a LoRA."""
    folder = resolve_model(model)
    if Path(folder).is_dir():
        folder = str(Path(folder).resolve())
    return folder, (locate(base_model(folder))[0] if is_lora(folder) else None)


def run_tasks(
    job: EvaluateJob, work: Sequence[tuple[tuple[str, str | None], list[dict[str, Any]]]], out: Path, console: Console
) -> list[dict[str, Any]]:
    """The score rows of all ``work``, (model place, manifest rows) per task, in order of completion."""
    import ray
    from ray.exceptions import RayTaskError

    start_ray()
    gpus = job.tasks.gpus_per_task
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
    task = ray.remote(num_cpus=job.tasks.cpus_per_task, num_gpus=gpus)(draw_and_score)
    device = "cuda" if gpus else "cpu"
    pending = {task.remote(place, rows, job, str(out), device): len(rows) for place, rows in work}
    scores: list[dict[str, Any]] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("drawing and scoring images", total=sum(pending.values()))
            while pending:
                done, _ = ray.wait(list(pending))
                for reference in done:
                    scores += ray.get(reference)
                    progress.advance(bar, pending.pop(reference))
    except RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise error.cause from error
        raise
    finally:
        for reference in pending:
            ray.cancel(reference)
    return scores


def draw_and_score(
    place: tuple[str, str | None], rows: list[dict[str, Any]], job: ComparisonPlan, out: str, device: str
) -> list[dict[str, Any]]:
    """The work of one task: draw the images of ``rows`` that are missing, score them all."""
    if any(not (Path(out) / row["file"]).is_file() for row in rows):
        make_missing(pipeline_of(*place, job.sampler.dtype, device), rows, job.sampler, out)
    scorers: list[Any] = job.scorers
    return [row for scorer in scorers for row in score_images(rows, out, scorer, loaded(scorer, device))]


@lru_cache(maxsize=1)
def pipeline_of(folder: str, base: str | None, dtype: str, device: str) -> Any:
    """The pipeline of a worker process; one at a time, since a GPU may not hold two."""
    return load_pipeline(folder, device, dtype, base=base)


@lru_cache(maxsize=8)
def loaded(scorer: Scorer, device: str) -> ScoreFunction:
    """The loaded scorer of a worker process."""
    return scorer.load(device)


def report(
    job: EvaluateJob,
    comparison: Comparison,
    *,
    title: str | None = None,
    training_curves: Mapping[str, str | Path] | None = None,
    sweep: Sequence[Mapping[str, Any]] | None = None,
    config: str | None = None,
    command: str | None = None,
) -> Path:
    """Write report.json and report.html into ``job.out`` and keep both in MLflow; returns the page.

    ``config`` and ``command`` are what the page says it is reproduced with, by default this job.
    """
    out = Path(job.out).resolve()
    save_config(job, out / "config.yaml")
    reproduce = Reproduce([command or f"palate evaluate --config {job.out}/config.yaml"], config or to_yaml(job))
    page = write_report(
        out,
        comparison,
        title=title or job.title,
        training_curves=training_curves or job.training_curves,
        sweep=sweep,
        reproduce=reproduce,
    )
    with track_run(job.tracking, out, config=job) as tracker:
        note_metrics(comparison, out / "metrics.jsonl")
        tracker.log_table(difference_columns(comparison), "eval/differences.json")
        tracker.log_image(samples_grid(comparison, out), "eval/samples", 0)
        tracker.log_artifact(page)
        tracker.log_artifact(out / "report.json")
    return page


def difference_columns(comparison: Comparison) -> dict[str, list[Any]]:
    """Every difference of the comparison, column by column."""
    names = ("model", "metric", "delta", "low", "high", "win_rate", "p", "p_holm")
    return {name: [getattr(row, name) for row in comparison.differences] for name in names}


def samples_grid(comparison: Comparison, folder: Path, *, prompts: int = 8, side: int = 128) -> Image.Image:
    """The first image of the first ``prompts`` prompts: a row per prompt, a column per model, in the models' order."""
    first: dict[tuple[int, str], str] = {}
    for row in comparison.scores:
        first.setdefault((row["prompt_index"], row["model"]), row["file"])
    shown = sorted({prompt for prompt, _ in first})[:prompts]
    grid = Image.new("RGB", (side * len(comparison.models), side * len(shown)))
    for y, prompt in enumerate(shown):
        for x, model in enumerate(comparison.models):
            with Image.open(folder / first[prompt, model]) as image:
                grid.paste(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (x * side, y * side))
    return grid


def note_metrics(comparison: Comparison, file: Path) -> None:
    """Append one line: ``eval/<scorer>/<column>/<model>/mean`` of every model, ``delta`` and ``win_rate`` of rivals."""
    values: dict[str, float] = {f"eval/{row.metric}/{row.model}/mean": row.mean for row in comparison.levels}
    for row in comparison.differences:
        values |= {
            f"eval/{row.metric}/{row.model}/delta": row.delta,
            f"eval/{row.metric}/{row.model}/win_rate": row.win_rate,
        }
    step = len(file.read_text("utf-8").splitlines()) if file.is_file() else 0
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


def results_table(comparison: Comparison) -> Table:
    """Every rival against the baseline on every metric, for the console."""
    table = Table(title=f"Difference to {comparison.baseline} with 95 % interval, shares in points", box=SIMPLE_HEAD)
    several = len({metric.scorer for metric in comparison.metrics}) > 1
    for name in ("model", "metric", comparison.baseline, "this", "difference", "wins", "p adj."):
        table.add_column(name, justify="left" if name in ("model", "metric") else "right", no_wrap=True)
    metrics = {metric.key: metric for metric in comparison.metrics}
    levels = {(row.model, row.metric): row.mean for row in comparison.levels}
    for d in comparison.differences:
        m = metrics[d.metric]
        table.add_row(
            d.model,
            d.metric if several else m.column,
            level(levels[comparison.baseline, d.metric], m),
            level(levels[d.model, d.metric], m),
            f"{amount(d.delta, m, bare=True)} \\[{amount(d.low, m, bare=True)}, {amount(d.high, m, bare=True)}]",
            f"{d.win_rate:.0%}",
            p_text(d.p_holm),
            style="bold" if m.primary else "dim",
        )
    return table


def plan_rows(job: EvaluateJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    prompts = load_prompt_set(job.prompts, job.limit)
    images = len(prompts) * job.images_per_prompt
    rows = [
        ("folder", str(Path(job.out).resolve())),
        ("prompts", f"{len(prompts):,} of {job.prompts}"),
        ("images", f"{images:,} for each model, {images * len(job.models):,} in all"),
        ("tasks", f"{len(job.models) * -(-images // job.tasks.images_per_task):,}"),
    ]
    return rows + [(f"model {name}", " on ".join(filter(None, locate(model)))) for name, model in job.models.items()]


def main(argv: list[str] | None = None) -> int:
    def run(job: EvaluateJob) -> None:
        console = Console()
        comparison = compare(job, console)
        page = report(job, comparison)
        console.print(results_table(comparison))
        for d in comparison.differences:
            if d.metric == comparison.headline.key:
                console.print(verdict(d, comparison.headline, comparison.baseline))
        console.print(f"report: {page}", soft_wrap=True)

    return run_verb(schema=EvaluateJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Workers unpickle by module name, and their `__main__` is another one: run what is importable by name.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["evaluate", *sys.argv[1:]]))

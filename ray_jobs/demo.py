"""palate demo: the whole way on the embedded model, from preferences to a report.

Without ``--config`` it is what ``make demo`` shows: tune_configs/demo/demo.yaml.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dpo_core.section import Section
from eval.verdict import verdicts
from ray_jobs.config import run_verb, save_config, to_yaml
from ray_jobs.evaluate import EvaluateJob, compare, report, results_tables
from ray_jobs.pairs import PairsJob, make_pairs
from ray_jobs.prepare import CacheSection, PrepareJob, prepare
from ray_jobs.record.tracking import tracking_uri
from ray_jobs.search import SearchSection
from ray_jobs.train import run_training
from ray_jobs.training.job import TrainJob
from ray_jobs.tune import JudgeSection, TuneJob, run_sweep, sweep_dir, table_of

KEPT, DONE = "demo.yaml", "demo.done"
"""In the demo's folder: its resolved config, and a mark that it was finished."""
CONFIG = Path(__file__).parents[1] / "tune_configs" / "demo" / "demo.yaml"
PAIRS_SAID = ("decided", "ties", "turned round")


class DemoJob(Section):
    """Pairs from the model's own images, DPO and an SFT control on them, a comparison on held-out prompts, a sweep."""

    out: str = "runs/demo"
    """Folder of everything the demo makes. One that was stopped there goes on, any other is replaced."""
    pairs: PairsJob = PairsJob()
    """The preference set; ``out`` is set by the demo."""
    cache: CacheSection = CacheSection()
    """The latent cache; ``folder`` is set by the demo."""
    train: TrainJob = TrainJob()
    """The preference training; ``data.paths`` and ``run.storage`` are set by the demo."""
    control: TrainJob | None
    """The control arm, trained on the same pairs; null leaves it out."""
    evaluate: EvaluateJob
    """The comparison; the trained models are added to it by the demo."""
    search: SearchSection | None
    """The space of the sweep around ``train``; null leaves the sweep out."""
    sweep_steps: int = 24
    """Updates of a trial."""
    judge: JudgeSection = JudgeSection()
    """How the trials of the sweep are judged."""


class Stages:
    """One line per stage: what it did and how long it took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self.said = ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began, self.said = time.monotonic(), ""
        yield
        self.seconds[name] = time.monotonic() - began
        self.console.print(f"[bold]{name:<10}[/]{self.seconds[name]:>6.0f} s  {self.said}")


def run_demo(job: DemoJob, console: Console | None = None) -> Path:
    """Run every stage; returns the report. Raises ValueError for a folder with anything but a demo in it."""
    console = console or Console()
    out = Path(job.out).resolve()
    if said := begin(job, out):
        console.print(f"{said} {shown(out)}")
    stage = Stages(console)

    with stage("pairs"):
        with console.status("drawing and judging pairs"):
            pairs = make_pairs(job.pairs.model_copy(update={"out": str(out / "pairs")}), Console(quiet=True))
        counts = {"pairs": pairs.totals["made"]} | {name: pairs.totals.get(name, 0) for name in PAIRS_SAID}
        stage.said = ", ".join(f"{number} {what}" for what, number in counts.items())

    with stage("prepare"):
        cache = job.cache.model_copy(update={"folder": str(out / "latents")})
        data = job.train.data.model_copy(update={"paths": [str(out / "pairs")]})
        plain = data.model_copy(update={"caption_dropout": 0.0})
        local = job.train.cluster.model_copy(update={"num_workers": 0})
        prepare(PrepareJob(family=job.train.family, data=plain, cache=cache, cluster=local), Console(quiet=True))
        stage.said = f"latents in {shown(out / 'latents')}"

    runs: dict[str, Path] = {}
    for name, given in (("train", job.train), ("control", job.control)):
        if given is None:
            continue
        with stage(name):
            trained = on_latents(given, out)
            runs[trained.run.name] = run_training(trained, console)
            if not (runs[trained.run.name] / "model").exists():
                raise ValueError("the demo was stopped while it trained; the same command goes on from there")
            stage.said = f"{trained.objective.kind}, {trained.loop.max_steps} updates, {shown(runs[trained.run.name])}"

    with stage("evaluate"):
        models = {name: str(folder / "model") for name, folder in runs.items()}
        changes = {
            "models": job.evaluate.models | models,
            "control": job.control.run.name if job.control else None,
            "out": str(out / "report"),
            "partial_scorers": [name.partition("/")[0] for name in pairs.report["labelled_by"]],
            "training_captions": [str(out / "pairs")],
        }
        evaluate = job.evaluate.model_copy(update=changes)
        comparison = compare(evaluate, console)
        stage.said = " ".join(verdicts(comparison)[:1])

    tables, rows = results_tables(comparison), []
    if job.search is not None:
        with stage("tune"):
            sweep = TuneJob(train=sweep_base(job, out), search=job.search, judge=job.judge)
            trials, rows = run_sweep(sweep, console)
            tables.append(table_of(trials, rows, list(job.search.space)))
            stage.said = f"{len(rows)} trials, best {rows[0]['trial']}, {shown(sweep_dir(sweep))}"

    with stage("report"):
        page = report(
            evaluate,
            comparison,
            title="Palate demo: does preference training mend the embedded model?",
            training_curves={name: folder / "metrics.jsonl" for name, folder in runs.items()},
            sweep=rows,
            config=to_yaml(job),
            command=f"palate demo --config {shown(out / KEPT)}",
        )
        (out / DONE).touch()
        stage.said = shown(page)

    console.print(*tables)
    console.print(
        f"total     {sum(stage.seconds.values()):>6.0f} s\n\n"
        f"Report           {page}\n"
        f"MLflow           mlflow server --port 5000 --backend-store-uri {tracking_uri(job.train.tracking, out)}\n"
        f"Comparison page  palate serve --config tune_configs/serve/local.yaml runs={out}",
        soft_wrap=True,
    )
    return page


def begin(job: DemoJob, out: Path) -> str:
    """Make ``out`` ready and say what became of the demo there. Only what a demo made is ever deleted."""
    kept, said = out / KEPT, ""
    if kept.exists():
        changed = kept.read_text(encoding="utf-8") != to_yaml(job)
        if not changed and not (out / DONE).exists():
            return "going on with the demo that was stopped in"
        shutil.rmtree(out)
        said = f"replacing {'another' if changed else 'the finished'} demo in"
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out: {out} holds files that no demo made; name a folder that is empty or does not exist yet")
    out.mkdir(parents=True, exist_ok=True)
    save_config(job, kept)
    return said


def on_latents(job: TrainJob, out: Path) -> TrainJob:
    """``job`` in the demo's folder, fed from the cache."""
    data = job.data.model_copy(update={"paths": [str(out / "latents")]})
    return job.model_copy(update={"data": data, "run": job.run.model_copy(update={"storage": str(out)})})


def sweep_base(job: DemoJob, out: Path) -> TrainJob:
    """The training that every trial starts from: short, in the trial's own process."""
    base = on_latents(job.train, out)
    steps = {"max_steps": job.sweep_steps, "checkpoint_every": job.sweep_steps * base.loop.log_every}
    return base.model_copy(
        update={
            "run": base.run.model_copy(update={"name": "sweep"}),
            "loop": base.loop.model_copy(update=steps),
            "cluster": base.cluster.model_copy(update={"num_workers": 0}),
        }
    )


def shown(path: Path) -> str:
    """The path as a person in this folder would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def plan_rows(job: DemoJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    stages = ["pairs", "prepare", "train", "control", "evaluate", "tune", "report"]
    left_out = {"control": job.control is None, "tune": job.search is None}
    runs = [run for run in (job.train, job.control) if run is not None]
    return [
        ("folder", str(Path(job.out).resolve())),
        ("stages", ", ".join(stage for stage in stages if not left_out.get(stage))),
        ("pairs", f"{job.pairs.recipe.source(job.pairs.seed, job.pairs.shard_pairs).rows:,}"),
        ("updates", ", ".join(f"{run.loop.max_steps} ({run.objective.kind})" for run in runs)),
    ]


def main(argv: list[str] | None = None) -> int:
    """Without ``--config`` it is the demo that ``make demo`` shows."""

    def run(job: DemoJob) -> None:
        run_demo(job)

    words = sys.argv[1:] if argv is None else argv
    if CONFIG.exists() and not any(word.split("=")[0] == "--config" for word in words):
        words = [f"--config={CONFIG}", *words]
    return run_verb(schema=DemoJob, run=run, plan=plan_rows, argv=words, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["demo", *sys.argv[1:]]))

"""palate demo: the whole way on the embedded model, from preferences to a report."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dpo_core.section import Section
from eval.verdict import verdicts
from ray_jobs.config import run_verb, to_yaml
from ray_jobs.evaluate import EvaluateJob, compare, report, results_tables
from ray_jobs.pairs import PairsJob, make_pairs
from ray_jobs.prepare import CacheSection, PrepareJob, prepare
from ray_jobs.search import SearchSection
from ray_jobs.tracking import tracking_uri
from ray_jobs.train import TrainJob, run_training
from ray_jobs.tune import JudgeSection, TuneJob, run_sweep, sweep_dir, table_of

PAIRS_SAID = ("decided", "ties", "turned round")


class DemoJob(Section):
    """Pairs from the model's own images, DPO and an SFT control on them, a comparison on held-out prompts, a sweep."""

    out: str = "runs/demo"
    """Folder of everything the demo makes."""
    fresh: bool = True
    """Start from an empty folder; false goes on where an earlier demo stopped."""
    pairs: PairsJob = PairsJob()
    """The preference set; ``out`` is set by the demo."""
    cache: CacheSection = CacheSection()
    """The latent cache; ``folder`` is set by the demo."""
    train: TrainJob = TrainJob()
    """The preference training; ``data.paths`` and ``run.storage`` are set by the demo."""
    control: TrainJob = TrainJob()
    """The control arm, trained on the same pairs."""
    evaluate: EvaluateJob
    """The comparison; the trained models are added to it by the demo."""
    search: SearchSection
    """The space of the sweep around ``train``."""
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
    """Run every stage; returns the report."""
    console = console or Console()
    out = Path(job.out).resolve()
    if job.fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
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
            "control": job.control.run.name,
            "out": str(out / "report"),
            "partial_scorers": [name.partition("/")[0] for name in pairs.report["labelled_by"]],
            "training_captions": [str(out / "pairs")],
        }
        evaluate = job.evaluate.model_copy(update=changes)
        comparison = compare(evaluate, console)
        stage.said = " ".join(verdicts(comparison)[:1])

    with stage("tune"):
        sweep = TuneJob(train=sweep_base(job, out), search=job.search, judge=job.judge)
        trials, rows = run_sweep(sweep, console)
        stage.said = f"{len(rows)} trials, best {rows[0]['trial']}, {shown(sweep_dir(sweep))}"

    with stage("report"):
        page = report(
            evaluate,
            comparison,
            title="Palate demo: does preference training mend the embedded model?",
            training_curves={name: folder / "metrics.jsonl" for name, folder in runs.items()},
            sweep=rows,
            config=to_yaml(job),
            command="make demo",
        )
        stage.said = shown(page)

    console.print(*results_tables(comparison), table_of(trials, rows, list(job.search.space)))
    console.print(
        f"total     {sum(stage.seconds.values()):>6.0f} s\n\n"
        f"Report           {page}\n"
        f"MLflow           mlflow server --port 5000 --backend-store-uri {tracking_uri(job.train.tracking, out)}\n"
        f"Comparison page  palate serve --config tune_configs/serve/local.yaml runs={out}",
        soft_wrap=True,
    )
    return page


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
    return [
        ("folder", str(Path(job.out).resolve())),
        ("stages", "pairs, prepare, train, control, evaluate, tune, report"),
        ("pairs", f"{job.pairs.recipe.source(job.pairs.seed, job.pairs.shard_pairs).rows:,}"),
        ("updates", f"{job.train.loop.max_steps} ({job.train.objective.kind}), "
                    f"{job.control.loop.max_steps} ({job.control.objective.kind})"),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    def run(job: DemoJob) -> None:
        run_demo(job)

    return run_verb(schema=DemoJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "")


if __name__ == "__main__":
    # Ray finds functions in its workers by the name of their module, which must not be __main__.
    from ray_jobs.cli import main as palate

    raise SystemExit(palate(["demo", *sys.argv[1:]]))

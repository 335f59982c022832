"""palate evaluate --verify-scorers: which scorers of this machine give the numbers that were published?

Downloads nothing: a scorer whose weights are not here is named as such. `--config` may be a comparison's; then its
scorers are tested, with their weights. Without scorers, all that need no endpoint are, with their default weights.
"""

from typing import Any

from pydantic import model_validator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dpo_core.section import Section
from eval.scorers import AnyScorer
from eval.scorers.verify import Verdict, standard_scorers, verify
from ray_jobs.comparison.job import EvaluateJob
from ray_jobs.config import run_verb

FLAG = "--verify-scorers"
STYLES = {"reproduced": "green", "differs": "bold red", "not checked": "dim"}


class VerifyJob(Section):
    """What is tested."""

    scorers: list[AnyScorer] = []
    """The scorers; none given: every one that needs no endpoint."""
    probes: str | None = None
    """Folder with the pictures of published scores: 1.webp to 4.webp of github.com/THUDM/ImageReward (assets/images),
    CLIP.png of github.com/openai/CLIP."""
    device: str = "cpu"
    """Where they run: cpu, cuda."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_comparison(cls, given: Any) -> Any:
        """The rest of a comparison's config is no mistake here; other unknown keys are."""
        if not isinstance(given, dict):
            return given
        others = EvaluateJob.model_fields.keys() - cls.model_fields.keys()
        return {key: value for key, value in given.items() if key not in others}


def verdict_table(verdicts: list[Verdict]) -> Table:
    """One row for each scorer."""
    table = Table(title="Do the scorers give the published numbers?", box=SIMPLE_HEAD, title_justify="left")
    for name in ("scorer", "verdict", "why"):
        table.add_column(name, no_wrap=name != "why")
    for verdict in verdicts:
        table.add_row(verdict.scorer, verdict.state, verdict.why, style=STYLES[verdict.state])
    return table


def plan_rows(job: VerifyJob) -> list[tuple[str, str]]:
    """What ``--dry-run`` tells beyond the resolved config."""
    scorers = list(job.scorers) or standard_scorers()
    return [("scorers", ", ".join(scorer.label for scorer in scorers)), ("downloads", "none")]


def main(argv: list[str] | None = None) -> int:
    """As every verb's; 1 if a scorer differs from what was published."""

    def run(job: VerifyJob) -> None:
        verdicts = verify(list(job.scorers) or standard_scorers(), job.probes, job.device)
        Console().print(verdict_table(verdicts))
        wrong = [verdict.scorer for verdict in verdicts if verdict.state == "differs"]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: not the published numbers, so do not compare with published ones")

    return run_verb(
        schema=VerifyJob, run=run, plan=plan_rows, argv=argv, doc=__doc__ or "", verb="evaluate --verify-scorers"
    )

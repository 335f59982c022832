"""The parts of a comparison: plain records of numbers, as they are written to report.json."""

from dataclasses import dataclass

from eval.section import Record


@dataclass(frozen=True)
class Metric(Record):
    """A column of a scorer."""

    scorer: str
    column: str
    meaning: str
    primary: bool
    higher_is_better: bool
    is_share: bool
    """Every score is 0 or 1, so means are shown in percent."""
    partial: str = ""
    """Why it cannot make the headline: its scorer labelled training data or picked a checkpoint. Empty if it can."""
    variant: str = ""
    """Which of the measures of that name it is: scorer and version."""
    caveat: str = ""
    """Why it must not be held against published numbers of that name; empty if it may be."""
    unit: str = ""
    """What its numbers are in; empty for a bare number."""
    decimals: int = 3
    """Digits after the point that say something, given how much scores differ."""

    @property
    def key(self) -> str:
        return f"{self.scorer}/{self.column}" if self.scorer != self.column else self.scorer


@dataclass(frozen=True)
class Level(Record):
    """How one model does on one metric and prompt set by itself."""

    model: str
    metric: str
    prompt_set: str
    mean: float
    """Over prompts, in the metric's unit; shares as 0 to 1."""
    low: float
    """Lower end of the mean's 95 % interval over prompts."""
    high: float
    """Upper end."""
    prompts: int
    """How many prompts (with photos: subjects) the mean is over."""


@dataclass(frozen=True)
class Difference(Record):
    """One model against another on one metric and prompt set; intervals are 95 %, deltas model minus ``against``."""

    model: str
    against: str
    metric: str
    prompt_set: str
    prompts: int
    """How many prompts (with photos: subjects) every number here is over."""
    images: int
    """Pairs of images that were averaged within them."""
    delta: float
    """Mean difference, in the metric's unit; shares as -1 to 1."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    effect_size: float
    """Mean over standard deviation of the prompts' deltas (Cohen's d for pairs); 0 if they do not vary."""
    win_rate: float
    """Share of pairs of images won, averaged within prompts, then over them; ties count half."""
    win_low: float
    """Lower end of its 95 % interval."""
    win_high: float
    """Upper end."""
    wins: int
    """Prompts on which more images are better than the other's."""
    ties: int
    """As many."""
    losses: int
    """Fewer."""
    p: float
    """Two-sided sign-flip permutation test of the prompts' deltas."""
    p_sign: float
    """Two-sided sign test of prompts won and lost."""
    p_adjusted: float | None
    """``p`` after Benjamini-Hochberg over all models, sets and primary metrics; None for the other columns, which
    explain and claim nothing."""
    shown: bool
    """Is there a difference: adjusted p below 0.05 and an interval without zero. Always False for other columns."""
    minimum_detectable: float | None
    """The true difference that so many prompts would show in four of five repeats, were it the only one among the
    report's claims; None where none could be shown."""


@dataclass(frozen=True)
class Group(Record):
    """The mean of a model over the prompts of a group, on the headline metric."""

    group: str
    value: str
    model: str
    prompt_set: str
    prompts: int
    mean: float
    """Over the group's prompts, with its 95 % interval; no correction for the number of groups."""
    low: float
    high: float


@dataclass(frozen=True)
class Rating(Record):
    """Bradley-Terry rating of a model on Elo's scale, the baseline at 0."""

    model: str
    metric: str
    prompt_set: str
    rating: float
    """400 points are odds of ten to one."""
    low: float
    """Lower end of its 95 % interval, prompts resampled."""
    high: float
    """Upper end."""


@dataclass(frozen=True)
class Agreement(Record):
    """Whether two scorers see the same prompts improve: rank correlation of their deltas."""

    metric: str
    other: str
    prompts: int
    correlation: float
    """Spearman's, of the deltas of all models."""
    low: float
    """Lower end of its 95 % interval, prompts resampled."""
    high: float
    """Upper end."""
    same_sign: float
    """Share of deltas on which both see the same winner, of those where both see one."""
    decided: int
    """How many deltas that is a share of: prompts times models where both see a winner."""


@dataclass(frozen=True)
class Published(Record):
    """A published result for this base model and prompt set, in the units of this report."""

    prompt_set: str
    metric: str
    method: str
    base: float | None
    value: float | None
    delta: float | None
    win_rate: float | None
    source: str
    note: str

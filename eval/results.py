"""The parts of a comparison: plain records of numbers, as they are written to report.json."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
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
class Level:
    """How one model does on one metric and prompt set by itself."""

    model: str
    metric: str
    prompt_set: str
    mean: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True)
class Difference:
    """One model against another on one metric and prompt set; intervals are 95 %, deltas model minus ``against``."""

    model: str
    against: str
    metric: str
    prompt_set: str
    prompts: int
    images: int
    delta: float
    low: float
    high: float
    effect_size: float
    """Mean over standard deviation of the prompts' deltas (Cohen's d for pairs); 0 if they do not vary."""
    win_rate: float
    win_low: float
    win_high: float
    wins: int
    ties: int
    losses: int
    """Prompts won, tied, lost (more, as many, fewer images better than the other's)."""
    p: float
    """Sign-flip permutation test of the deltas."""
    p_sign: float
    """Sign test of prompts won and lost."""
    p_adjusted: float | None
    """``p`` after Benjamini-Hochberg over all models, sets and primary metrics; None for the other columns, which
    explain and claim nothing."""
    shown: bool
    """Is there a difference: adjusted p below 0.05 and an interval without zero. Always False for other columns."""
    minimum_detectable: float | None
    """The true difference that so many prompts would show in four of five repeats, were it the only one among the
    report's claims; None where none could be shown."""


@dataclass(frozen=True)
class Group:
    """The mean of a model over the prompts of a group, on the headline metric."""

    group: str
    value: str
    model: str
    prompt_set: str
    prompts: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Rating:
    """Bradley-Terry rating of a model on Elo's scale, the baseline at 0."""

    model: str
    metric: str
    prompt_set: str
    rating: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Whether two scorers see the same prompts improve: rank correlation of their deltas."""

    metric: str
    other: str
    prompts: int
    correlation: float
    low: float
    high: float
    same_sign: float
    """Share of deltas on which both see the same winner, of those where both see one."""
    decided: int
    """How many deltas that is a share of: prompts times models where both see a winner."""


@dataclass(frozen=True)
class Published:
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

"""Configs: what is read, what is refused and in which words, what is written back."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from dpo_core.section import Section
from ray_jobs.config import ConfigError, load_config, run_verb, save_config
from ray_jobs.settings.yaml12 import parse, write


class DPO(Section):
    """The usual one."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=5000.0, gt=0)
    """How strongly the reference holds."""
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)


class IPO(Section):
    """The bounded one."""

    kind: Literal["ipo"] = "ipo"
    beta: float = Field(default=0.1, gt=0)


AnyObjective = Annotated[DPO | IPO, Field(discriminator="kind")]


class White(Section):
    """The same at all frequencies."""

    kind: Literal["white"] = "white"
    level: float = 1.0
    """How much of it."""


class Pink(Section):
    """More of the low ones."""

    kind: Literal["pink"] = "pink"
    level: float = 1.0
    """How much of it."""
    power: float = 1.0


class Optim(Section):
    """How the weights move."""

    lr: float = Field(default=1e-8, gt=0)
    """Learning rate after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    name: Literal["adamw", "adafactor"] = "adamw"
    clip: float | None = None
    fused: bool = False

    @model_validator(mode="after")
    def adafactor_is_never_fused(self) -> "Optim":
        if self.fused and self.name == "adafactor":
            raise ValueError("adafactor is never fused; allowed: fused=false or name=adamw")
        return self


class Job(Section):
    objective: AnyObjective = DPO(beta=2000)
    """What is learnt."""
    reference: AnyObjective | None = None
    optim: Optim = Optim(lr=1e-6)
    noise: Annotated[White | Pink, Field(discriminator="kind")] = White()
    scorers: list[AnyObjective] = []
    paths: list[Path] = []
    tags: dict[str, str] = {}
    name: str = "run"
    span: tuple[int, float] = (1, 0.5)


def load(text: str, tmp_path: Path, *overrides: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_config(Job, path, list(overrides))


def problems(text: str, tmp_path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path, *overrides)
    return caught.value.problems


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    job = load("optim: {lr: 1e-7, warmup_steps: 5}", tmp_path, "optim.lr=1e-5", "optim.lr=2e-5")
    assert job.optim == Optim(lr=2e-5, warmup_steps=5)
    assert load("optim: {warmup_steps: 5}", tmp_path).optim.lr == 1e-6
    assert load("", tmp_path) == Job()


def test_file_may_change_one_field_of_a_default_union_member(tmp_path: Path) -> None:
    assert load("objective: {smoothing: 0.1}", tmp_path).objective == DPO(beta=2000, smoothing=0.1)


def test_other_kind_leaves_the_defaults_of_the_first_kind_behind() -> None:
    assert load_config(Job, None, ["objective.kind=ipo"]).objective == IPO()


def test_other_kind_names_what_the_file_gave_to_the_first_kind(tmp_path: Path) -> None:
    text = "objective: {kind: dpo, beta: 7, smoothing: 0.1}"
    assert problems(text, tmp_path, "objective.kind=ipo") == [
        "objective.smoothing = 0.1: kind 'ipo' has no such key (it belongs to kind dpo)"
    ]
    assert load(text, tmp_path, "objective={kind: ipo}").objective == IPO()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-6", 1e-6),
        ("name=1e-6", "1e-6"),
        ("name=no", "no"),
        ("name=a=b", "a=b"),
        ("name=", ""),
        ("optim.fused=no", False),
        ("optim.fused=yes", True),
        ("optim.clip=null", None),
        ("paths=[a, b/c]", [Path("a"), Path("b/c")]),
        ("tags={team: red}", {"team": "red"}),
        ("tags.team=red", {"team": "red"}),
        ("span=[2, 1e-3]", (2, 1e-3)),
    ],
)
def test_override_text_is_converted_by_the_schema(override: str, value: object) -> None:
    result: object = load_config(Job, None, [override])
    for part in override.partition("=")[0].split("."):
        result = result if isinstance(result, dict) else getattr(result, part)
    assert result == value


def test_list_item_is_overridden_by_its_index(tmp_path: Path) -> None:
    job = load("scorers: [{kind: ipo}, {kind: dpo}]", tmp_path, "scorers.1.beta=3")
    assert job.scorers == [IPO(), DPO(beta=3)]


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = """
optim: {lr: -1, warmup_step: 3, name: adamW}
scorers: [{kind: dpoo}, {beta: 1}, {kind: ipo, beta: x}]
lr: 3
paths: a
name: 7
"""
    assert problems(text, tmp_path, "objective.beta=0", "name.x=1", "reference=ipo", "oops") == [
        "name.x: name is 7, which has no keys",
        "'oops': is not an override; write section.key=value, such as optim.lr=1e-6",
        "objective.beta = '0': must be greater than 0; allowed: float > 0",
        "reference = 'ipo': must be a section, key by key; did you mean 'reference.kind=ipo'?",
        "optim.lr = -1: must be greater than 0; allowed: float > 0",
        "optim.name = 'adamW': must be 'adamw' or 'adafactor'; did you mean 'adamw'?",
        "optim.warmup_step = 3: unknown key; did you mean 'optim.warmup_steps'?",
        "scorers.0.kind = 'dpoo': is not known; did you mean 'dpo'?",
        "scorers.1.kind: is required but not given; allowed: dpo, ipo",
        "scorers.2.beta = 'x': must be a valid number, unable to parse string as a number; allowed: float > 0",
        "paths = 'a': must be a valid list; allowed: list of path, written as [a, b]",
        'name = 7: must be a valid string; allowed: str (in YAML, put "quotes" around it)',
        "lr = 3: unknown key; did you mean 'optim.lr'?",
    ]


def test_word_of_a_validator_is_passed_on_with_its_section(tmp_path: Path) -> None:
    assert problems("optim: {fused: true, name: adafactor}", tmp_path) == [
        "optim: adafactor is never fused; allowed: fused=false or name=adamw"
    ]


def test_boolean_is_no_number(tmp_path: Path) -> None:
    assert problems("optim: {lr: true}", tmp_path) == ["optim.lr = true: must be a number; allowed: float > 0"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is given twice, first in line 1"),
        ("optim: {lr: 1", "line 1, column 14: expected ',' or '}'"),
        ("- a", "must hold sections (key: value lines), not list"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &x [*x]", "recursive"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_file_that_is_no_config_is_refused_with_its_place(text: str, reason: str, tmp_path: Path) -> None:
    assert reason in problems(text, tmp_path)[0]


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read: No such file"):
        load_config(Job, tmp_path / "missing.yaml", [])
    (tmp_path / "job.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 6 is 0xff"):
        load_config(Job, tmp_path / "job.yaml", [])


def test_yaml_scalars_mean_what_people_expect() -> None:
    text = "[1e-6, 1E5, .5, -1., no, on, 010, 0x1F, 1:30, 2026-11-20, ~, true, .inf, 1_000, '5']"
    assert parse(text) == [
        1e-6, 1e5, 0.5, -1.0, "no", "on", 10, 31, "1:30", "2026-11-20", None, True, float("inf"), "1_000", "5",
    ]  # fmt: skip


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
_WORDS = st.sampled_from(["no", "1e-6", "0x1", "~", "null", "1:30", "", " a ", "<<", "=", ".inf", "010", "a: b", "#"])


@given(st.dictionaries(st.text(min_size=1, max_size=8), _SCALARS | _WORDS | st.lists(_SCALARS | _WORDS, max_size=3)))
def test_written_yaml_reads_back_equal(data: dict[str, object]) -> None:
    assert parse(write(data)) == data


def test_saved_config_reads_back_equal(tmp_path: Path) -> None:
    overrides = ["objective.kind=ipo", "paths=[a/b]", "tags={a: no, b: '1e-6'}", "name=007", "optim.clip=inf"]
    overrides += ["scorers=[{kind: dpo, beta: 1e-9}]", "reference.kind=dpo"]
    job = load_config(Job, None, overrides)
    save_config(job, tmp_path / "config.yaml")
    assert load_config(Job, tmp_path / "config.yaml", []) == job
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def verb(*argv: str, error: BaseException | None = None) -> int:
    def run(job: Job) -> None:
        print("lr", job.optim.lr)
        if error:
            raise error

    return run_verb(Job, run, lambda job: [("updates", "100"), ("lr", str(job.optim.lr))], list(argv), "Trains.")


def test_verb_runs_with_the_resolved_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("optim: {lr: 1}")
    assert verb(f"--config={tmp_path / 'job.yaml'}") == 0
    assert verb("optim.lr=3", "--config", str(tmp_path / "job.yaml")) == 0
    assert capsys.readouterr().out == "lr 1.0\nlr 3.0\n"


def test_dry_run_prints_config_and_plan_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("--dry-run", "optim.lr=0.25", error=ValueError("ran")) == 0
    text, _, plan = capsys.readouterr().out.partition("\nPlan\n")
    assert Job.model_validate(parse(text)).optim.lr == 0.25
    assert plan == "  updates  100\n  lr       0.25\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["--dry-rum"], "did you mean '--dry-run'?"),
        (["job.yaml"], "did you mean '--config job.yaml'?"),
        (["--config"], "needs a file name"),
        (["--config", "a", "--config", "b"], "is given twice"),
        (["--help", "optm"], "did you mean 'optim'?"),
    ],
)
def test_wrong_command_line_exits_with_two(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(*argv) == 2
    assert words in capsys.readouterr().err


def test_errors_of_the_work_become_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(error=ValueError("no rows")) == 1
    assert verb(error=KeyboardInterrupt()) == 130
    assert verb(error=ConfigError(["lr: bad"])) == 2
    assert capsys.readouterr().err == "error: no rows\ninterrupted\n1 problem in the config:\n  lr: bad\n"
    with pytest.raises(RuntimeError, match="bug"):
        verb(error=RuntimeError("bug"))

import json
from pathlib import Path
from typing import get_args

import pytest

from dpo_core.families import AnyFamily
from dpo_core.objectives import AnyObjective
from tests.golden import CONFIGS, FOLDER, NAMES, path_of, record


@pytest.mark.parametrize("name", NAMES)
def test_training_follows_the_committed_trajectory(name: str, tmp_path: Path):
    committed, now = json.loads(path_of(name).read_text()), record(name, tmp_path)
    assert len(committed["rows"]) == len(now["rows"])
    for expected, row in zip(committed["rows"], now["rows"], strict=True):
        assert expected.keys() == row.keys()
        # A step function of margins, some of which are nothing but rounding: they are compared, their signs are not.
        for values in (expected, row):
            values.pop("train/implicit_accuracy", None)
        # Another CPU rounds errors in the seventh digit, which beta makes the fourth of a margin.
        assert row == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert now["weights"] == pytest.approx(committed["weights"], rel=1e-5)


def test_every_family_and_every_objective_has_a_trajectory():
    kinds = [section.model_fields["kind"].default for union in (AnyFamily, AnyObjective)
             for section in get_args(get_args(union)[0])]  # fmt: skip
    parts = {part for name in NAMES for part in (name.partition("_")[0], name.partition("_")[2])}
    assert [kind for kind in kinds if kind not in parts] == []
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(path.stem for path in CONFIGS.glob("*.yaml"))

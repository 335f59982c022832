import json

import pytest

from tests.fault_table import Figures, attempt, table


def test_a_fault_that_was_not_survived_stands_in_the_table(tmp_path, monkeypatch):
    file = tmp_path / "faults.jsonl"
    monkeypatch.setenv("PALATE_FAULTS", str(file))
    with attempt("worker killed", "same bits") as figures:
        figures.lost_updates, figures.seconds = 3, 20.4
    with pytest.raises(AssertionError), attempt("worker killed", "same bits"):
        raise AssertionError
    noted = [Figures(**json.loads(line)) for line in file.read_text().splitlines()]
    assert table(noted).splitlines()[-1] == "| worker killed | 2 | 2 | 1 | 3 | 20 |  | same bits |"


def test_figures_of_one_fault_are_told_as_a_range():
    rows = [Figures("node lost", True, 1, lost, seconds) for lost, seconds in ((0, 31.0), (5, 62.3), (2, 40.0))]
    assert "| node lost | 3 | 3 | 3 | 0 to 5 | 31 to 62 |" in table(rows)


def test_waits_below_a_second_are_told_in_hundredths():
    rows = [Figures("server slow", True, longest_wait=wait) for wait in (0.0004, 0.234)]
    assert "| server slow | 2 | 2 | 2 |  |  | below 0.01 to 0.23 |" in table(rows)

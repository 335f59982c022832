"""The --help of a verb, of the schema that the tests of configs have."""

import pytest

from tests.ray_jobs.test_config import verb


def test_help_names_every_field_with_type_default_and_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("--help") == 0
    text = capsys.readouterr().out
    assert "OBJECTIVE (kind: dpo | ipo; default dpo)\n  What is learnt.\n" in text
    assert "  objective.kind=ipo: The bounded one.\n  objective.beta: float > 0  (default 0.1)\n" in text
    assert "  objective.beta: float > 0  (default 2000.0)\n      How strongly the reference holds.\n" in text
    assert "  optim.lr: float > 0  (default 1e-06)\n      Learning rate after the warm-up.\n" in text
    assert "  optim.clip: float | null  (default null)" in text
    assert "REFERENCE (kind: dpo | ipo; default null)" in text
    assert "each item of scorers with kind dpo" in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_of_one_section_shows_that_section_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("--help", "optim") == 0
    text = capsys.readouterr().out
    assert text.startswith("OPTIM\n  How the weights move.\n")
    assert "objective" not in text
    assert verb("--help", "optim.lr", "reference.beta") == 0
    text = capsys.readouterr().out
    assert text.startswith("optim.lr: float > 0  (default 1e-06)\n    Learning rate after the warm-up.\n")
    assert "reference.beta: float > 0  (default 5000.0)" in text
    assert "reference.beta: float > 0  (default 0.1)" in text


def test_long_help_shows_the_sections_there_are_and_all_of_it_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verb("--help", "all") == 0
    everything = capsys.readouterr().out
    monkeypatch.setattr("ray_jobs.settings.help.LONG", 20)
    assert verb("--help") == 0
    text = capsys.readouterr().out
    assert "--help all         every setting there is: " in text
    assert "\noptim\n    How the weights move.\n" in text
    assert "\nobjective (kind: dpo | ipo; default dpo)\n" in text
    assert "optim.lr" not in text
    assert verb("--help", "all") == 0
    assert capsys.readouterr().out == everything


def test_help_says_once_what_every_kind_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("--help", "noise") == 0
    text = capsys.readouterr().out
    assert text.count("noise.level: ") == 1
    assert text.index("noise.level: ") < text.index("noise.kind=white")
    assert text.index("noise.kind=pink") < text.index("noise.power: ")

import pytest
import yaml
from safetensors.torch import save_file

from eval.scorers.aesthetic import load_head
from ray_jobs.evaluate import main

AESTHETIC = {"kind": "aesthetic"}


@pytest.fixture
def comparison(tmp_path):
    """A comparison's config with the scorers given."""

    def write(*scorers):
        plan = {"models": {"base": "some/model", "mine": "runs/x"}, "out": "runs/compare", "scorers": list(scorers)}
        (tmp_path / "compare.yaml").write_text(yaml.safe_dump(plan))
        return str(tmp_path / "compare.yaml")

    return write


def words_of(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_the_scorers_of_a_comparison_are_tested(comparison, capsys):
    assert main(["--verify-scorers", "--config", comparison(AESTHETIC, {"kind": "shapes"})]) == 0
    said = words_of(capsys)
    assert "aesthetic reproduced its head on three embeddings" in said
    assert "shapes not checked it loads" in said
    assert "pickscore" not in said


def test_a_scorer_that_differs_ends_in_an_error(comparison, capsys, tmp_path):
    weight, bias = load_head()
    save_file({"weight": weight * 1.01, "bias": bias}, tmp_path / "head.safetensors")
    assert (
        main(["--verify-scorers", "--config", comparison(AESTHETIC | {"head": str(tmp_path / "head.safetensors")})])
        == 1
    )
    printed = capsys.readouterr()
    assert "differs" in printed.out
    assert printed.err == "error: aesthetic: not the published numbers, so do not compare with published ones\n"


def test_without_a_config_every_scorer_is_planned(capsys):
    assert main(["--verify-scorers", "--dry-run"]) == 0
    said = words_of(capsys)
    for name in (
        "pickscore",
        "hpsv2.0",
        "hpsv2.1",
        "hpsv3",
        "imagereward",
        "clip-h14",
        "clip-hessel",
        "dino",
        "geneval",
    ):
        assert f"{name}," in said
    assert "downloads none" in said


def test_a_wrong_key_is_still_refused(comparison, capsys):
    assert main(["--verify-scorers", "--config", comparison(AESTHETIC), "probe=x"]) == 2
    assert "probe" in capsys.readouterr().err

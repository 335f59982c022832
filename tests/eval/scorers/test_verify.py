import socket

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from eval.scorers import verify as module
from eval.scorers.aesthetic import Aesthetic, load_head
from eval.scorers.clip import CLIPScore
from eval.scorers.clip_i import ClipI
from eval.scorers.clip_t import ClipT
from eval.scorers.endpoint import EndpointSection
from eval.scorers.imagereward import ImageReward
from eval.scorers.judge import Judge
from eval.scorers.shapes import Shapes
from eval.scorers.verify import LABELS, OCEAN, REWARDS, standard_scorers, verify
from eval.scorers.vqascore import VQAScore


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The weights of the scorers that are compared are on this machine."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("zai-org--ImageReward", "timm--vit_base_patch32_clip_224.openai"):
        refs = tmp_path / "hub" / f"models--{name}" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text("abc")


@pytest.fixture
def probes(tmp_path, cached):
    for name in (*REWARDS, "CLIP.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """The hub is switched on and empty, and nobody may ask it anything. Yields who tried."""
    tried = []

    def refuse(*given, **more):
        tried.append(given)
        raise AssertionError(f"asked the network: {given}")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


def test_weights_that_are_only_half_here_are_not_fetched(no_network, tmp_path):
    for scorer in standard_scorers():
        for place in scorer.places():
            (tmp_path / f"models--{str(place).replace('/', '--')}" / "refs").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"models--{str(place).replace('/', '--')}" / "refs" / "main").write_text("abc")
    states = {verdict.scorer: verdict.state for verdict in verify(standard_scorers())}
    assert {name for name, state in states.items() if state == "reproduced"} == {"aesthetic"}
    assert no_network == []


def test_nothing_is_downloaded_and_every_scorer_gets_a_verdict(no_network):
    scorers = standard_scorers()
    verdicts = verify(scorers)
    assert no_network == []
    assert constants.HF_HUB_OFFLINE is False
    assert [verdict.scorer for verdict in verdicts] == [scorer.label for scorer in scorers]
    assert len({verdict.scorer for verdict in verdicts}) == len(verdicts)
    states = {verdict.scorer: verdict.state for verdict in verdicts}
    assert states.pop("aesthetic") == "reproduced"
    why = {verdict.scorer: verdict.why for verdict in verdicts}
    assert why["hpsv2.1"] == "its weights are not on this machine: xswu/HPSv2"
    assert set(states.values()) == {"not checked"}
    assert all(len(verdict.why) > 20 for verdict in verdicts)


def test_a_changed_head_is_found(tmp_path):
    weight, bias = load_head()
    save_file({"weight": weight, "bias": bias + 0.001}, tmp_path / "head.safetensors")
    (verdict,) = verify([Aesthetic(head=str(tmp_path / "head.safetensors"))])
    assert verdict.state == "differs"
    assert verdict.why.endswith("largest difference 0.001, allowed 1e-05")
    assert verdict.why.startswith("its head on three embeddings")


@pytest.mark.parametrize(("error", "state"), [(0.0, "reproduced"), (0.008, "reproduced"), (0.02, "differs")])
def test_rewards_are_compared_with_the_published_ones(monkeypatch, probes, error, state):
    def load(self, device):
        def score(images, prompts):
            assert prompts == [OCEAN] * 4
            return [{"reward": value + error} for value in REWARDS.values()]

        return score

    monkeypatch.setattr(ImageReward, "load", load)
    assert verify([ImageReward()], probes)[0].state == state
    assert verify([ImageReward(dtype="float16")], probes)[0].state == "reproduced"


@pytest.mark.parametrize(("shift", "state"), [(0.0, "reproduced"), (0.002, "differs")])
def test_the_tower_of_three_scorers_is_compared_with_its_published_shares(monkeypatch, probes, shift, state):
    def load(self, device):
        cosines = torch.tensor(list(LABELS.values())).log() / 100 + torch.tensor([0.2, 0.2 + shift, 0.2])
        return lambda images, texts: [{"clip_t": value} for value in cosines.tolist()]

    monkeypatch.setattr(ClipT, "load", load)
    scorers = [ClipT(), ClipI(), CLIPScore(variant="hessel")]
    assert [verdict.state for verdict in verify(scorers, probes)] == [state] * 3


def test_what_is_missing_is_named(monkeypatch, probes):
    monkeypatch.setattr(ImageReward, "load", lambda self, device: None)
    assert "give a folder `probes` with 1.webp, 2.webp" in verify([ImageReward()])[0].why
    (probes / "3.webp").unlink()
    assert verify([ImageReward()], probes)[0].why.endswith("needs 3.webp")


def test_weights_without_published_numbers_are_not_called_verified():
    (verdict,) = verify([Shapes()])
    assert verdict.state == "not checked"
    assert verdict.why.startswith("it loads, but")
    endpoint = EndpointSection(model="critic")
    assert {verdict.why for verdict in verify([Judge(endpoint=endpoint), VQAScore(endpoint=endpoint)])} == {
        "asks an endpoint, which can change at any time and costs"
    }


def test_every_scorer_is_either_compared_or_says_why_not():
    for scorer in standard_scorers():
        compared = module._check_of(scorer) is not None
        reason = type(scorer) in module.UNPUBLISHED or isinstance(scorer, CLIPScore)
        assert compared or reason, scorer.label

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def images():
    """Four pictures that differ in size and shape, with smooth parts, edges and noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for wide, high in ((64, 64), (90, 50), (31, 77), (300, 200)):
        y, x = np.mgrid[:high, :wide]
        waves = [np.sin(x / wide * rate) + np.cos(y / high * (rate + 2)) for rate in (5, 9, 14)]
        noise = rng.normal(0, 25, (high, wide, 3))
        pictures.append(Image.fromarray((np.stack(waves, -1) * 60 + 128 + noise).clip(0, 255).astype(np.uint8)))
    return pictures


@pytest.fixture(scope="session")
def prompts():
    return ["a red wall", "two dogs on a beach, oil painting", "x", "many words " * 40]


@pytest.fixture(scope="session")
def same_alone():
    """Checks that a score is the same, up to rounding, whatever is scored together with it."""

    def check(score, *lists, within):
        together = score(*lists)
        alone = [score(*([item] for item in items))[0] for items in zip(*lists, strict=True)]
        backwards = score(*(list(reversed(items)) for items in lists))[::-1]
        for other in (alone, backwards):
            for row, again in zip(together, other, strict=True):
                assert row == pytest.approx(again, abs=within)
        assert len({tuple(row.values()) for row in together}) == len(together), "scores that never differ prove nothing"

    return check

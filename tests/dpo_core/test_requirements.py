"""Combinations that cannot be trained are refused by the config alone, before a model is loaded."""

from typing import Any

import pytest
from pydantic import ValidationError

from dpo_core.recipe import TrainSection

MODEL = "someone/some-model"
IP_ADAPTER = {"method": "ip_adapter", "ip_adapter": {"model": "a.safetensors", "image_encoder": "b"}}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"family": {"kind": "flux"}}, r"family\.model=embedded is a model of family sd15: give family\.kind=flux"),
        ({"objective": {"kind": "dcpo"}}, r"dcpo needs a caption for each image: set data\.captions=per_image"),
        ({"objective": {"kind": "sudo"}}, r"sudo needs rejected images made .* other, blur, grid or noise"),
        ({"objective": {"kind": "patchdpo"}}, r"patchdpo needs a patch quality map .* set data\.quality=true"),
        ({"policy": IP_ADAPTER}, r"needs image prompts: set data\.prompt_image=true"),
        (
            {"policy": IP_ADAPTER, "data": {"prompt_image": True}, "family": {"kind": "sd3", "model": MODEL}},
            r"for the U-Net families \(sd15, sdxl\), not for sd3",
        ),
        ({"data": {"prompt_image": True}}, r"IP-Adapter, which policy\.method=full does not have"),
        (
            {"policy": {"method": "lora", "text_encoder": True}, "family": {"kind": "auraflow", "model": MODEL}},
            r"policy\.text_encoder=true is for CLIP text encoders, which family auraflow does not have",
        ),
        (
            {"policy": {"sharding": "full"}, "optim": {"name": "adafactor"}},
            r"set optim\.name=adamw instead of adafactor",
        ),
        ({"optim": {"schedule": "polynomial", "lr": 1e-8}}, r"polynomial ends at 1e-07: optim\.lr=1e-08 must be above"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_with_what_to_set(sections: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        TrainSection.model_validate(sections)


def test_all_reasons_are_told_at_once():
    with pytest.raises(ValidationError, match=r"embedded is a model of .*; objective sudo needs .*; optim\.schedule="):
        TrainSection.model_validate(
            {
                "family": {"kind": "sdxl"},
                "objective": {"kind": "sudo"},
                "optim": {"schedule": "polynomial", "lr": 1e-8},
            }
        )

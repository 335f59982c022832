"""The folder that a run leaves: what its card tells a user to type really works."""

import json
from typing import Any

import pytest
import torch
from PIL import Image

from dpo_core.export import export_model
from dpo_core.policy import Policy
from dpo_core.recipe import TrainSection
from tests.tiny_ip_adapter import make_tiny_ip_adapter
from tests.tiny_models import make_tiny_sd

CPU = torch.device("cpu")


@pytest.mark.parametrize("denoiser", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "ip_adapter"])
def test_the_code_on_the_card_draws_an_image(tiny_sd, tmp_path, method, denoiser):
    family: dict[str, Any] = {"kind": "sd15", "model": str(tiny_sd)}
    if denoiser:
        family["denoiser"] = str(make_tiny_sd(tmp_path / "other", seed=1))
    policy: dict[str, Any] = {"method": method}
    if method == "ip_adapter":
        unet = TrainSection.model_validate({"family": family}).family.load(CPU, "fp32").denoiser
        adapter, encoder = make_tiny_ip_adapter(tmp_path, unet)
        policy["ip_adapter"] = {"model": str(adapter), "image_encoder": str(encoder)}
    data = {"prompt_image": method == "ip_adapter"}
    config = TrainSection.model_validate({"family": family, "policy": policy, "data": data})
    loaded = config.family.load(CPU, "fp32")
    trained = Policy(config.policy, loaded, CPU, "fp32", seed=0, needs_reference=False)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05)
    record = config.model_dump(mode="json")
    export_model(tmp_path / "model", loaded, name="test", config=record, facts={}, dtype=torch.float32)

    card = (tmp_path / "model" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(tmp_path / "model"))
    names: dict[str, Any] = {"reference": Image.new("RGB", (32, 32), "red")}
    exec(code, names)
    assert names["image"].size == (16, 16)
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert provenance["kind"] == {"full": "pipeline"}.get(method, method)
    assert provenance["base_denoiser"] == family.get("denoiser")
    if method == "lora":
        state = names["pipeline"].unet.state_dict()
        base = loaded.denoiser.state_dict()
        assert torch.equal(state["conv_in.weight"], base["conv_in.weight"])

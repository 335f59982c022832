"""Cuts recorded training cases down to what the tests compare: python -m tests.parity.cut FOLDER CASE...

``FOLDER`` holds, per case, what a script computed from recorded inputs (steps.safetensors, meta.json) and the data and
tiny models that it was run on. The other half of a pair's noise, timesteps and captions is left out where it repeats
the first, and so is what follows from the rest. Models and data are copied as they are.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

OUT = Path(__file__).parents[1] / "assets" / "parity"
EVERY = (
    "latents", "policy_pred", "ref_pred", "L_theta", "L_ref", "u", "loss", "dpo_loss", "rows", "perm", "add_time_ids",
)  # fmt: skip
SHARED = ("noise", "timesteps", "encoder_hidden_states", "pooled_prompt_embeds")
FIRST = ("noisy_latents", "target", "pixel_values_u8", "vae_eps", "original_sizes", "crop_top_lefts")
UPDATES = 3
UPDATE = ("grad_norm_f64", "lr", "param_sums")
META = (
    "case", "source", "hyper_parameters", "loss", "optimizer", "max_grad_norm", "accumulation", "lora", "micro_steps",
    "n_optimizer_steps", "versions", "oddities", "tolerance",
)  # fmt: skip

NOTICE = """Numbers recorded from {repo}, commit {commit},
file {file}.
Licence of that repository: {licence}.

steps.safetensors holds the random inputs of {updates} updates of a tiny random model (../models/{model}, trained on
../pickapic_tiny) and what that file computed from them in float32 on a CPU: predictions, losses, gradient norms and
parameters. It holds none of the code. meta.json gives hyper-parameters, oddities and how closely the numbers can be
reproduced.
"""


def cut_case(folder: Path, name: str) -> None:
    meta = json.loads((folder / name / "meta.json").read_text())
    meta["micro_steps"] = [step for step in meta["micro_steps"] if step["opt"] < UPDATES]
    meta["n_optimizer_steps"] = UPDATES
    ends = {"m": len(meta["micro_steps"]), "o": UPDATES}
    tensors = load_file(folder / name / "steps.safetensors")
    kept: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        step, _, what = key.partition(".")
        if int(step[1:]) >= ends[step[0]]:
            continue
        if what in SHARED:
            half = tensor[: len(tensor) // 2]
            kept[key] = half.clone() if torch.equal(torch.cat([half, half]), tensor) else tensor
        wanted = what in EVERY or what in UPDATE or (what in FIRST and step == "m00")
        if wanted or (what.startswith("param.") and step == f"o{UPDATES - 1:02}"):
            kept[key] = tensor
    out = OUT / name
    out.mkdir(parents=True, exist_ok=True)
    save_file(kept, out / "steps.safetensors")
    init = folder / name / "init_trainable.safetensors"
    if init.exists():
        (out / init.name).write_bytes(init.read_bytes())
    model = Path(meta["model"]).name
    short = {key: meta[key] for key in META} | {
        "model": model,
        "trainable": [entry["name"] for entry in meta["trainable"]],
        "captions": [captions_of(folder, model, tensors, index) for index in range(len(meta["micro_steps"]))],
    }
    (out / "meta.json").write_text(json.dumps(short, indent=1) + "\n")
    facts: dict[str, Any] = meta["source"] | {"updates": meta["n_optimizer_steps"], "model": model}
    (out / "NOTICE").write_text(NOTICE.format(**facts))


def captions_of(folder: Path, model: str, tensors: dict[str, Tensor], micro: int) -> list[str]:
    """The caption behind each row of token ids: the row's own in the data, or the empty one where it was dropped."""
    table = pq.read_table(folder / "data" / "pickapic_tiny" / "train.parquet").to_pylist()
    rows = [table[row] for row in tensors[f"m{micro:02}.rows"].tolist()]
    ids = tensors.get(f"m{micro:02}.input_ids", tensors.get(f"m{micro:02}.input_ids_one"))
    assert ids is not None
    captions = [row["caption"] for row in rows]
    if len(ids) == 2 * len(rows):
        sides = [(0, 1) if row["label_0"] else (1, 0) for row in rows]
        captions = [row[f"caption_{side[place]}"] for place in (0, 1) for row, side in zip(rows, sides, strict=True)]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "models" / model / "tokenizer")
    found = []
    for caption, given in zip(captions, ids.tolist(), strict=True):
        fits = [
            text
            for text in (caption, "")
            if tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids == given
        ]
        assert len(fits) == 1, caption
        found += fits
    return found


if __name__ == "__main__":
    for case in sys.argv[2:]:
        cut_case(Path(sys.argv[1]), case)

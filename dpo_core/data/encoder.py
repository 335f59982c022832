"""Which encoders made, or would make, what a cache holds of a family."""

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open

from dpo_core.data.plan import Plan
from dpo_core.families.autoencoder import load_vae, load_vae_config
from dpo_core.families.base import Family, weights_hash
from dpo_core.families.pipeline import read_index, wrong_model

TEXT_SETTINGS = {"kind", "t5", "t5_max_length", "max_length"}
"""Fields of families that change what becomes of a caption."""
VOCABULARIES = {"vocab.json", "merges.txt", "spiece.model", "tokenizer.json"}


def encoder_hash(family: Family) -> str:
    """Hash of the float32 weights of the family's autoencoder; the precision it will run in does not matter.

    Raises ValueError when the model has none.
    """
    return weights_hash([load_vae(family)])


def text_hash(family: Family) -> str:
    """Hash of the float32 weights and the vocabularies of the family's text encoders, read tensor by tensor.

    The largest of them need not fit into memory. Raises ValueError when their files cannot be found.
    """
    index = {name: entry for name, entry in read_index(family).items() if entry != [None, None]}
    parts = [name for name in index if name.startswith(("text_encoder", "tokenizer"))]
    folder = _local_folder(family, parts)
    digest = hashlib.sha256(repr(sorted(family.model_dump(include=TEXT_SETTINGS).items())).encode())
    for part in sorted(parts):
        for file in sorted(path for path in (folder / part).glob("*") if path.name in VOCABULARIES):
            digest.update(f"{part}/{file.name}".encode() + file.read_bytes())
        if part.startswith("text_encoder"):
            _add_weights(digest, part, _weights_files(family, folder / part))
    return digest.hexdigest()


def latent_shape(family: Family, resolution: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of square images, from the autoencoder's config alone.

    Raises ValueError when the model has no autoencoder.
    """
    config = load_vae_config(family)
    side = resolution // 2 ** (len(config["block_out_channels"]) - 1)
    return config["latent_channels"], side, side


def check_encoder(plan: Plan, family: Family) -> None:
    """Raise ValueError when ``plan`` holds latents, or states of captions, of other encoders than ``family`` has.

    Images always pass.
    """
    if plan.cache is None:
        return
    held = [("latents", "autoencoder", plan.cache.encoder, encoder_hash)]
    if plan.cache.text:
        held.append(("states of the captions", "text encoders", plan.cache.text, text_hash))
    for what, who, made, hash_of in held:
        if (now := hash_of(family)) != made:
            raise ValueError(
                f"the {what} were encoded by the {who} of {plan.cache.model!r} ({made[:12]}), but "
                f"family.model={family.model!r} has other ones ({now[:12]}); run `palate prepare` with this model "
                f"into a new folder, or train the model that the {what} were made for"
            )


def _local_folder(family: Family, parts: list[str]) -> Path:
    if Path(family.source).is_dir():
        return Path(family.source)
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*{suffix}" for part in parts for suffix in (".safetensors", *VOCABULARIES)]
    try:
        return Path(snapshot_download(family.source, revision=family.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise wrong_model(family, f"has no text encoders that can be read: {error}") from error


def _weights_files(family: Family, folder: Path) -> list[Path]:
    """The files that would be loaded: those of the variant, where one is asked for and there."""
    found = sorted(folder.glob("*.safetensors"))
    of_variant = [file for file in found if family.variant and f".{family.variant}." in file.name]
    plain = [file for file in found if file.name.count(".") == 1]
    if not (files := of_variant or plain or found):
        raise wrong_model(family, f"has no safetensors weights in {folder}")
    return files


def _add_weights(digest: "hashlib._Hash", part: str, files: list[Path]) -> None:
    """In the order of the tensors' names, however they are spread over ``files``."""
    opened = [safe_open(file, framework="pt") for file in files]
    for name, held in sorted((name, index) for index, file in enumerate(opened) for name in list(file.keys())):
        tensor = opened[held].get_tensor(name).to(torch.float32).contiguous()
        digest.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())

"""Trains the autoencoder of the embedded model: 64 x 64 pixels to 4 x 16 x 16 latents and back.

    python -m dpo_core.embedded.vae --out DIR --steps 10000 --device cuda

Three quarters of every batch are drawings of the world (training captions only); the rest is colourful noise with soft
and hard edges, so that photographs come through recognisable as well.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from dpo_core.data.sources.shapes import SIZE, captions, draw

SCALING_FACTOR = 0.18215
"""Stable Diffusion's own factor; ``normalise_latents`` makes it true, so a forgotten factor shows at once."""

KL_WEIGHT = 2e-4


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder: 0.7 M parameters, factor 4, 4 latent channels."""
    blocks: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 64),
    }
    return AutoencoderKL(
        **blocks,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )


def train_vae(
    out_dir: str | Path,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    *,
    batch_size: int = 64,
    lr: float = 1e-3,
    drawings: int = 20_000,
    bf16: bool = False,
    tests: int = 512,
) -> AutoencoderKL:
    """Trains for ``steps`` updates, saves a diffusers folder (float32) in ``out_dir`` and returns the model on the CPU.

    ``out_dir/training.json`` keeps what it was trained with and its PSNR in dB on ``tests`` held-out drawings.
    The same arguments on the same machine give the same weights as far as the device's kernels are deterministic.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: it must be at least 1")
    torch.manual_seed(seed)
    rng = torch.Generator(device).manual_seed(seed)
    vae: Any = new_vae()
    vae.to(device, memory_format=torch.channels_last)
    train = render(captions("train", singles=True), drawings, seed).to(device)
    test = render(captions("heldout", singles=False), tests, seed + 1).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_share(step, steps))
    began = time.time()
    for step in range(steps):
        images = training_images(train, batch_size, rng)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            posterior = _posterior(vae, images)
            noise = torch.randn(posterior.mean.shape, generator=rng, device=device)
            error = _decode(vae, posterior.mean + posterior.std * noise).float() - images
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 20) == 0:
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.4f}  l1 {error.abs().mean().item():.4f}  "
                f"kl {kl.item():.2f}  psnr {psnr(vae, test):.2f} dB  {time.time() - began:.0f} s",
                flush=True,
            )
    normalise_latents(vae, train[:2048])
    record = {"steps": steps, "seed": seed, "batch_size": batch_size, "lr": lr, "drawings": drawings, "bf16": bf16}
    record["heldout_psnr_db"] = round(psnr(vae, test), 2)
    vae.cpu().save_pretrained(out_dir)
    (Path(out_dir) / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return vae.eval()


def render(texts: list[str], count: int, seed: int) -> Tensor:
    """``count`` drawings of ``texts`` in turn, uint8 [count, 3, 64, 64]; no two share a seed."""
    pictures = [torch.from_numpy(draw(texts[i % len(texts)], seed * 1_000_003 + i)) for i in range(count)]
    return torch.stack(pictures).permute(0, 3, 1, 2).contiguous()


def training_images(drawings: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """A batch in -1..1, float32 [count, 3, 64, 64]: three quarters ``drawings``, the rest generic content."""
    generic = count // 4
    chosen = torch.randint(len(drawings), (count - generic,), generator=rng, device=drawings.device)
    parts = [drawings[chosen].float() / 127.5 - 1]
    if generic:
        soft, other, mask = (_fields(generic, rng, drawings.device) for _ in range(3))
        parts.append(torch.where(mask.mean(1, keepdim=True) > 0, soft, other))
    return torch.cat(parts)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, drawings: Tensor) -> None:
    """Folds an affine map per channel into the two 1 x 1 convolutions around the latents.

    Afterwards every channel of ``vae.encode(...).latent_dist.mean * SCALING_FACTOR`` has mean 0 and
    standard deviation 1 over ``drawings`` (uint8 [N, 3, 64, 64]), and reconstructions are what they were.
    """
    quant: Any = vae.quant_conv
    post: Any = vae.post_quant_conv
    latents = torch.cat([_posterior(vae, part.float() / 127.5 - 1).mean for part in drawings.split(128)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (SCALING_FACTOR * std)
    channels = len(gain)
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2 * gain.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


@torch.no_grad()
def psnr(vae: AutoencoderKL, drawings: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of decoding the posterior means of ``drawings``, uint8 [N, 3, 64, 64]."""
    squares = torch.cat([(reconstruct(vae, part) - part.float()).square().flatten(1) for part in drawings.split(128)])
    return 10 * math.log10(255**2 / squares.mean().item())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N, 3, H, W] in 0..255, through the posterior mean."""
    decoded = _decode(vae, _posterior(vae, pictures.float() / 127.5 - 1).mean)
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round()


def _posterior(vae: AutoencoderKL, images: Tensor) -> DiagonalGaussianDistribution:
    encode: Any = vae.encode
    return encode(images, return_dict=False)[0]


def _decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    decode: Any = vae.decode
    return decode(latents, return_dict=False)[0]


def _lr_share(step: int, steps: int) -> float:
    warmup = min(200, steps // 10)
    return (step + 1) / (warmup + 1) if step < warmup else 0.5 + 0.5 * math.cos(math.pi * step / steps)


def _fields(count: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """Colourful noise at all scales with a random roughness per picture, [count, 3, 64, 64] within -1..1."""
    roughness = torch.rand((count, 1, 1, 1), generator=rng, device=device)
    field = torch.randn((count, 3, 1, 1), generator=rng, device=device).expand(-1, -1, SIZE, SIZE) * 0.5
    for octave in range(1, 6):
        noise = torch.randn((count, 3, 2**octave, 2**octave), generator=rng, device=device)
        field = field + roughness**octave * F.interpolate(noise, SIZE, mode="bilinear")
    grey = field.mean(1, keepdim=True)
    return torch.tanh(grey + (field - grey) * torch.rand((count, 1, 1, 1), generator=rng, device=device) * 1.5)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``train_vae``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for the trained autoencoder")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="highest learning rate; it decays along a cosine to zero"
    )
    parser.add_argument("--drawings", type=int, default=20_000, help="drawings rendered before training")
    parser.add_argument("--tests", type=int, default=512, help="held-out drawings that the PSNR is measured on")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    args = vars(parser.parse_args(argv))
    train_vae(args.pop("out"), **args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

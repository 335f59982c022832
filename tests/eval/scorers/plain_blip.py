"""ImageReward written out with nothing but matrix products, reading the names of its published checkpoint."""

import math

import torch
from torch.nn import functional as F


def linear(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(x, state, name, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(q, k, v, heads, mask=None):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return ((weights if mask is None else weights + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


def look(pixels, state, heads, depth):
    name = "blip.visual_encoder"
    weight, bias = state[f"{name}.patch_embed.proj.weight"], state[f"{name}.patch_embed.proj.bias"]
    x = F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{name}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{name}.pos_embed"]
    for i in range(depth):
        block = f"{name}.blocks.{i}"
        q, k, v = linear(norm(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, heads), state, f"{block}.attn.proj")
        y = F.gelu(linear(norm(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1"))
        x = x + linear(y, state, f"{block}.mlp.fc2")
    return norm(x, state, f"{name}.norm", 1e-6)


def read(words, mask, seen, state, heads, depth):
    name = "blip.text_encoder"
    x = state[f"{name}.embeddings.word_embeddings.weight"][words]
    x = x + state[f"{name}.embeddings.position_embeddings.weight"][: words.shape[1]]
    x = norm(x, state, f"{name}.embeddings.LayerNorm", 1e-12)
    hidden = (1.0 - mask[:, None, None, :].float()) * -1e9
    for i in range(depth):
        layer = f"{name}.encoder.layer.{i}"
        for part, other, cover in (("attention", None, hidden), ("crossattention", seen, None)):
            source = x if other is None else other
            q, k, v = (
                linear(x, state, f"{layer}.{part}.self.query"),
                *(linear(source, state, f"{layer}.{part}.self.{which}") for which in ("key", "value")),
            )
            y = linear(attend(q, k, v, heads, cover), state, f"{layer}.{part}.output.dense")
            x = norm(x + y, state, f"{layer}.{part}.output.LayerNorm", 1e-12)
        y = linear(F.gelu(linear(x, state, f"{layer}.intermediate.dense")), state, f"{layer}.output.dense")
        x = norm(x + y, state, f"{layer}.output.LayerNorm", 1e-12)
    return x


def reward(pixels, words, mask, state, *, heads, depth):
    """Published rewards [n]; heads and depth of the (vision, text) encoders."""
    x = read(words, mask, look(pixels, state, heads[0], depth[0]), state, heads[1], depth[1])[:, 0]
    for place in (0, 2, 4, 6, 7):
        x = linear(x, state, f"mlp.layers.{place}")
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072

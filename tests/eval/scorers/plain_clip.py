"""CLIP written out with nothing but matrix products, reading the names of OpenAI's and open_clip's checkpoints."""

import math

import torch
from torch.nn import functional as F


def block(x, state, name, heads, activation, mask=None):
    """One residual block of a transformer, x [n, length, width]."""
    y = F.layer_norm(x, x.shape[-1:], state[f"{name}.ln_1.weight"], state[f"{name}.ln_1.bias"])
    q, k, v = F.linear(y, state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mixed = ((weights if mask is None else weights + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, state[f"{name}.attn.out_proj.weight"], state[f"{name}.attn.out_proj.bias"])
    y = F.layer_norm(x, x.shape[-1:], state[f"{name}.ln_2.weight"], state[f"{name}.ln_2.bias"])
    y = activation(F.linear(y, state[f"{name}.mlp.c_fc.weight"], state[f"{name}.mlp.c_fc.bias"]))
    return x + F.linear(y, state[f"{name}.mlp.c_proj.weight"], state[f"{name}.mlp.c_proj.bias"])


def layers(state, name):
    return sum(key.startswith(f"{name}.") and key.endswith(".ln_1.weight") for key in state)


def image_features(pixels, state, heads, activation=F.gelu):
    """Unnormalised embedding [n, d] of pixels [n, 3, size, size]."""
    patch = state["visual.conv1.weight"].shape[-1]
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = F.layer_norm(x, x.shape[-1:], state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    for i in range(layers(state, "visual.transformer.resblocks")):
        x = block(x, state, f"visual.transformer.resblocks.{i}", heads, activation)
    x = F.layer_norm(x[:, 0], x.shape[-1:], state["visual.ln_post.weight"], state["visual.ln_post.bias"])
    return x @ state["visual.proj"]


def text_features(tokens, state, heads, activation=F.gelu):
    """Unnormalised embedding [n, d] of tokens [n, length]; the largest token of a row ends its text."""
    length = tokens.shape[1]
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][:length]
    mask = torch.full((length, length), -math.inf).triu(1)
    for i in range(layers(state, "transformer.resblocks")):
        x = block(x, state, f"transformer.resblocks.{i}", heads, activation, mask)
    x = F.layer_norm(x, x.shape[-1:], state["ln_final.weight"], state["ln_final.bias"])
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ state["text_projection"]


def from_transformers(state):
    """The names of a transformers CLIPModel as OpenAI's."""
    out = {"logit_scale": state["logit_scale"]}
    out["visual.proj"], out["text_projection"] = state["visual_projection.weight"].T, state["text_projection.weight"].T
    for tower, to in (("vision_model", "visual."), ("text_model", "")):
        own = {name.removeprefix(f"{tower}."): part for name, part in state.items() if name.startswith(f"{tower}.")}
        for name, part in own.items():
            short = name.replace("encoder.layers.", "transformer.resblocks.").replace("mlp.fc1", "mlp.c_fc")
            short = short.replace("mlp.fc2", "mlp.c_proj").replace(".layer_norm", ".ln_").replace("self_attn", "attn")
            if ".q_proj." in name:
                joined = [own[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
                out[to + short.replace("q_proj.", "in_proj_")] = torch.cat(joined)
            out[to + short] = part
    renamed = {
        "visual.embeddings.class_embedding": "visual.class_embedding",
        "visual.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "visual.embeddings.position_embedding.weight": "visual.positional_embedding",
        "visual.pre_layrnorm.weight": "visual.ln_pre.weight",
        "visual.pre_layrnorm.bias": "visual.ln_pre.bias",
        "visual.post_layernorm.weight": "visual.ln_post.weight",
        "visual.post_layernorm.bias": "visual.ln_post.bias",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    return {renamed.get(name, name): part for name, part in out.items()}

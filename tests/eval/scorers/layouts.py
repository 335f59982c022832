"""Names and shapes of the published checkpoints, written down by rule and not read off the modules that load them."""

import torch


def meta(shapes):
    """A state dict that takes no memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def both(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def open_clip_vit_h():
    """HPS_v2_compressed.pt and HPS_v2.1_compressed.pt: open_clip's ViT-H-14."""
    shapes = {"logit_scale": (), "positional_embedding": (77, 1024), "token_embedding.weight": (49408, 1024)}
    shapes |= {"text_projection": (1024, 1024), **both("ln_final", 1024), "visual.proj": (1280, 1024)}
    shapes |= {"visual.class_embedding": (1280,), "visual.positional_embedding": (257, 1280)}
    shapes |= {"visual.conv1.weight": (1280, 3, 14, 14), **both("visual.ln_pre", 1280), **both("visual.ln_post", 1280)}
    for prefix, count, width in (("", 24, 1024), ("visual.", 32, 1280)):
        for i in range(count):
            block = f"{prefix}transformer.resblocks.{i}"
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            shapes |= both(f"{block}.attn.out_proj", width, width) | both(f"{block}.ln_1", width)
            shapes |= both(f"{block}.mlp.c_fc", 4 * width, width) | both(f"{block}.mlp.c_proj", width, 4 * width)
            shapes |= both(f"{block}.ln_2", width)
    return shapes


def pickscore():
    """PickScore_v1: a CLIPModel of the transformers of its day, which saved position ids."""
    shapes = {"logit_scale": (), "text_projection.weight": (1024, 1024), "visual_projection.weight": (1024, 1280)}
    shapes |= {"text_model.embeddings.position_ids": (1, 77), "vision_model.embeddings.position_ids": (1, 257)}
    shapes |= {"text_model.embeddings.token_embedding.weight": (49408, 1024)}
    shapes |= {
        "text_model.embeddings.position_embedding.weight": (77, 1024),
        **both("text_model.final_layer_norm", 1024),
    }
    shapes |= {"vision_model.embeddings.class_embedding": (1280,)}
    shapes |= {"vision_model.embeddings.patch_embedding.weight": (1280, 3, 14, 14)}
    shapes |= {"vision_model.embeddings.position_embedding.weight": (257, 1280)}
    shapes |= both("vision_model.pre_layrnorm", 1280) | both("vision_model.post_layernorm", 1280)
    for prefix, count, width in (("text_model", 24, 1024), ("vision_model", 32, 1280)):
        for i in range(count):
            layer = f"{prefix}.encoder.layers.{i}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= both(f"{layer}.self_attn.{part}", width, width)
            shapes |= both(f"{layer}.mlp.fc1", 4 * width, width) | both(f"{layer}.mlp.fc2", width, 4 * width)
            shapes |= both(f"{layer}.layer_norm1", width) | both(f"{layer}.layer_norm2", width)
    return shapes


def vit(prefix, depth, width, length):
    """timm's and the original DINO's and BLIP's vision transformer with patches of 16."""
    shapes = {f"{prefix}cls_token": (1, 1, width), f"{prefix}pos_embed": (1, length, width)}
    shapes |= both(f"{prefix}patch_embed.proj", width, 3, 16, 16) | both(f"{prefix}norm", width)
    for i in range(depth):
        block = f"{prefix}blocks.{i}"
        shapes |= both(f"{block}.norm1", width) | both(f"{block}.norm2", width)
        shapes |= both(f"{block}.attn.qkv", 3 * width, width) | both(f"{block}.attn.proj", width, width)
        shapes |= both(f"{block}.mlp.fc1", 4 * width, width) | both(f"{block}.mlp.fc2", width, 4 * width)
    return shapes


def dino():
    """dino_deitsmall16_pretrain.pth."""
    return vit("", 12, 384, 197)


def bert(prefix, *, layers=12, width=768, inner=3072, seen=1024, words=30524, places=512):
    """BERT with cross-attention to an image."""
    shapes = {f"{prefix}embeddings.position_ids": (1, places), **both(f"{prefix}embeddings.LayerNorm", width)}
    shapes |= {f"{prefix}embeddings.word_embeddings.weight": (words, width)}
    shapes |= {f"{prefix}embeddings.position_embeddings.weight": (places, width)}
    for i in range(layers):
        layer = f"{prefix}encoder.layer.{i}"
        for attention, other in (("attention", width), ("crossattention", seen)):
            shapes |= both(f"{layer}.{attention}.self.query", width, width)
            shapes |= both(f"{layer}.{attention}.self.key", width, other)
            shapes |= both(f"{layer}.{attention}.self.value", width, other)
            shapes |= both(f"{layer}.{attention}.output.dense", width, width)
            shapes |= both(f"{layer}.{attention}.output.LayerNorm", width)
        shapes |= both(f"{layer}.intermediate.dense", inner, width) | both(f"{layer}.output.dense", width, inner)
        shapes |= both(f"{layer}.output.LayerNorm", width)
    return shapes


def imagereward():
    """ImageReward.pt: BLIP large, with the projections of its pre-training, and the head."""
    shapes = vit("blip.visual_encoder.", 24, 1024, 197) | bert("blip.text_encoder.")
    shapes |= both("blip.vision_proj", 256, 1024) | both("blip.text_proj", 256, 768)
    for place, after, before in ((0, 1024, 768), (2, 128, 1024), (4, 64, 128), (6, 16, 64), (7, 1, 16)):
        shapes |= both(f"mlp.layers.{place}", after, before)
    return shapes


def hpsv3():
    """HPSv3.safetensors: Qwen2-VL 7B as transformers 4.45 named it, one word more than its tokenizer has, and the head.
    Told by the published code; the file itself was not seen."""
    shapes = {
        "model.embed_tokens.weight": (151658, 3584),
        "lm_head.weight": (151658, 3584),
        "model.norm.weight": (3584,),
    }
    for i in range(28):
        layer = f"model.layers.{i}"
        shapes |= both(f"{layer}.self_attn.q_proj", 3584, 3584)
        shapes |= both(f"{layer}.self_attn.k_proj", 512, 3584) | both(f"{layer}.self_attn.v_proj", 512, 3584)
        shapes |= {f"{layer}.self_attn.o_proj.weight": (3584, 3584), f"{layer}.mlp.down_proj.weight": (3584, 18944)}
        shapes |= {f"{layer}.mlp.gate_proj.weight": (18944, 3584), f"{layer}.mlp.up_proj.weight": (18944, 3584)}
        shapes |= {f"{layer}.input_layernorm.weight": (3584,), f"{layer}.post_attention_layernorm.weight": (3584,)}
    shapes |= {"visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14)} | both("visual.merger.ln_q", 1280)
    shapes |= both("visual.merger.mlp.0", 5120, 5120) | both("visual.merger.mlp.2", 3584, 5120)
    for i in range(32):
        block = f"visual.blocks.{i}"
        shapes |= both(f"{block}.norm1", 1280) | both(f"{block}.norm2", 1280)
        shapes |= both(f"{block}.attn.qkv", 3840, 1280) | both(f"{block}.attn.proj", 1280, 1280)
        shapes |= both(f"{block}.mlp.fc1", 5120, 1280) | both(f"{block}.mlp.fc2", 1280, 5120)
    for place, after, before in ((0, 1024, 3584), (3, 16, 1024), (5, 2, 16)):
        shapes |= both(f"rm_head.{place}", after, before)
    return shapes

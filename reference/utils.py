"""Convert Hugging Face's names of GPT-2's weights to ours.

A checkpoint is a dictionary from names to arrays. Hugging Face's names are on the left, our model's in the middle:

    transformer.wte.weight              embeddings.weight                       (vocab, d)
    transformer.wpe.weight              position_embeddings.weight              (context, d)
    transformer.h.N.ln_1.*              backbone.N.pre_layer_norm.*             (d)
    transformer.h.N.attn.c_attn.*       backbone.N.attention.W_q, W_k, W_v.*    (d, 3d) -> three of (d, d)
    transformer.h.N.attn.c_proj.*       backbone.N.attention.W_o.*              (d, d)   transposed
    transformer.h.N.ln_2.*              backbone.N.post_layer_norm.*            (d)
    transformer.h.N.mlp.c_fc.*          backbone.N.mlp.fc1.*                    (d, 4d)  transposed
    transformer.h.N.mlp.c_proj.*        backbone.N.mlp.fc2.*                    (4d, d)  transposed
    transformer.ln_f.*                  final_layer_norm.*                      (d)
    lm_head.weight                      lm_head.weight                          (vocab, d)
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

BACKBONE_NAMES = {
    "ln_1": "pre_layer_norm",
    "ln_2": "post_layer_norm",
    "attn.c_proj": "attention.W_o",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OUTER_NAMES = {
    "wte.weight": "embeddings.weight",
    "wpe.weight": "position_embeddings.weight",
    "ln_f.weight": "final_layer_norm.weight",
    "ln_f.bias": "final_layer_norm.bias",
    "lm_head.weight": "lm_head.weight",
}


def switch_backbone_key(key: str, value: Tensor) -> dict[str, Tensor]:
    """Convert one entry of a block, `[transformer.]h.N.PART.{weight,bias}`, to our names.

    Returns three entries for c_attn, none for a mask, otherwise one. Raises KeyError for a part that GPT-2 lacks.
    """
    # exercise: converter
    _, layer, part = key.removeprefix("transformer.").split(".", maxsplit=2)

    # Old checkpoints store their causal masks among the weights; a mask is not a weight.
    if part in ("attn.bias", "attn.masked_bias"):
        return {}

    part, kind = part.rsplit(".", maxsplit=1)
    # OpenAI's layers compute x W with W stored (in, out); nn.Linear computes x W^T with W stored (out, in). Forgetting
    # the transpose of attn.c_proj raises no error, as that matrix is square.
    stored_transposed = kind == "weight" and part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    if stored_transposed:
        value = rearrange(value, "d_in d_out -> d_out d_in").contiguous()

    if part == "attn.c_attn":  # query, key and value, in this order, in one matrix
        thirds = rearrange(value, "(three d_out) ... -> three d_out ...", three=3)
        return {
            f"backbone.{layer}.attention.{name}.{kind}": third.clone()
            for name, third in zip(("W_q", "W_k", "W_v"), thirds, strict=True)
        }
    return {f"backbone.{layer}.{BACKBONE_NAMES[part]}.{kind}": value}


def state_dict_converter(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a whole Hugging Face GPT-2 state dict to our names, for a strict `load_state_dict`.

    Accepts names with and without the prefix `transformer.`, and drops mask buffers. If a file stores the tied matrix
    only once (as OpenAI's do), `lm_head.weight` becomes a copy of `wte`: a separate matrix, which training moves apart
    from the embeddings.
    Raises KeyError for a name that GPT-2 does not have.
    """
    # exercise: converter
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = key.removeprefix("transformer.")
        if name.startswith("h."):
            converted |= switch_backbone_key(name, value)
        else:
            converted[OUTER_NAMES[name]] = value
    if "lm_head.weight" not in converted and "embeddings.weight" in converted:
        converted["lm_head.weight"] = converted["embeddings.weight"].clone()
    return converted

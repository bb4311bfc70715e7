"""Write a GPT-2 as one GGUF file, for llama.cpp and programs built on it (Ollama, LM Studio).

Names and keys are those of llama.cpp's converter for GPT-2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hectogpt.data import Tokenizer
from hectogpt.errors import not_installed
from hectogpt.files import replacing
from hectogpt.interop.hf_model import names
from hectogpt.model.parts import LayerNorm
from hectogpt.model.transformer import Transformer
from hectogpt.model.weights import saved_tensors

FILE = "model.gguf"
# Hugging Face's names of GPT-2's tensors (inside a layer, without its number) -> GGUF's names.
NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
NAMES |= {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}
NAMES |= {"ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def write(
    model: Transformer, tokenizer: Tokenizer, path: Path, title: str, matrices: str = "f32"
) -> None:
    """Write the file atomically.

    Args:
        model: a GPT-2.
        tokenizer: its tokenizer.
        path: the file to write.
        title: the model's name in the file.
        matrices: the format of the matrices, as gguf names it, such as q8_0. If it is not f32,
            the head gets q8_0, as in llama.cpp, and the position embeddings stay f32.

    Raises UserError if the package gguf is missing, and OSError if the file cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise not_installed("writing GGUF files", "gguf", "gguf") from None
    config = model.config
    assert isinstance(config.norm, LayerNorm)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "gpt2")
        writer.add_name(title)
        writer.add_block_count(config.n_layers)
        writer.add_context_length(config.context_length)
        writer.add_embedding_length(config.d_model)
        writer.add_feed_forward_length(4 * config.d_model)
        writer.add_head_count(config.n_heads)
        writer.add_layer_norm_eps(config.norm.eps)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        tokens = list(tokenizer.vocabulary())
        writer.add_token_list(tokens)
        kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
        writer.add_token_types(kinds)
        merges = tokenizer.merges.decode("utf-8").splitlines()
        writer.add_token_merges([line for line in merges if not line.startswith("#version")])
        writer.add_bos_token_id(tokenizer.end_of_text)
        writer.add_eos_token_id(tokenizer.end_of_text)
        writer.add_add_bos_token(False)
        for name, tensor in tensors(model):
            small = matrices != "f32" and tensor.ndim == 2 and name != "position_embd.weight"
            form = gguf.GGMLQuantizationType[
                ("q8_0" if name == "output.weight" else matrices).upper()
            ]
            writer.add_tensor(
                name, *((gguf.quants.quantize(tensor, form), None, form) if small else (tensor,))
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def tensors(model: Transformer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the GGUF name and the values of each tensor, in float32, with matrices as [out, in].

    A tied head has no tensor of its own.
    """
    state = saved_tensors(model)
    for theirs, ours, _ in names(model.config.n_layers):
        name, _, kind = theirs.rpartition(".")
        layer, name = name.split(".", 2)[1:] if name.startswith("h.") else ("", name)
        if ours[0] in state:
            joined: Tensor = torch.cat([state[one] for one in ours])
            place = f"blk.{layer}." * bool(layer) + NAMES[name]
            yield f"{place}.{kind}", joined.to(torch.float32).contiguous().numpy()

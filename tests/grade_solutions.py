"""A right solution of the assignment as a student writes it, ways to edit it, and judging one in this process."""

from __future__ import annotations

import json
import linecache
import sys
from types import ModuleType

from hectogpt.grade import laws, outcomes
from hectogpt.grade.calls import Transcript
from hectogpt.grade.child import replies
from hectogpt.grade.result import PartResult
from hectogpt.grade.run_part import Answer, answer_of_error

BASE = """
import math
from dataclasses import dataclass
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from einops import rearrange, einsum


@dataclass
class ModelConfig:
    d_model: int
    n_heads: int
    n_layers: int
    context_length: int
    vocab_size: int


class GELU(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, 4 * config.d_model)
        self.fc2 = nn.Linear(4 * config.d_model, config.d_model)
        self.gelu = GELU()

    def forward(self, x):
        h = self.fc1(x)
        h = self.gelu(h)
        out = self.fc2(h)
        return out


class CausalAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.d_attention = int(config.d_model / config.n_heads)
        self.W_k = nn.Linear(config.d_model, config.d_model)
        self.W_q = nn.Linear(config.d_model, config.d_model)
        self.W_v = nn.Linear(config.d_model, config.d_model)
        self.W_o = nn.Linear(config.d_model, config.d_model)
        ones = torch.ones(config.context_length, config.context_length)
        self.register_buffer("causal_mask", torch.tril(ones)[None, None], persistent=False)

    def forward(self, x):
        B, T, C = x.shape
        H = C // self.d_attention
        q = self.W_q(x)
        k = self.W_k(x)
        v = self.W_v(x)
        q = q.view(B, T, H, self.d_attention).transpose(1, 2)
        k = k.view(B, T, H, self.d_attention).transpose(1, 2)
        v = v.view(B, T, H, self.d_attention).transpose(1, 2)
        scores = q @ k.transpose(-2, -1)
        scores = scores / math.sqrt(self.d_attention)
        mask = self.causal_mask[:, :, :T, :T]
        scores = scores.masked_fill(mask == 0, float("-inf"))
        weights = F.softmax(scores, dim=-1)
        z = weights @ v
        z = z.transpose(1, 2).contiguous().view(B, T, C)
        out = self.W_o(z)
        return out


class DecoderBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mlp = MLP(config)
        self.attention = CausalAttention(config)
        self.pre_layer_norm = nn.LayerNorm(config.d_model)
        self.post_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x):
        x = x + self.attention(self.pre_layer_norm(x))
        x = x + self.mlp(self.post_layer_norm(x))
        return x


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embeddings = nn.Embedding(config.context_length, config.d_model)
        self.backbone = nn.ModuleList([DecoderBlock(config) for _ in range(config.n_layers)])
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, x):
        B, T = x.shape
        tok = self.embeddings(x)
        pos = self.position_embeddings(torch.arange(T, device=x.device))
        h = tok + pos
        for block in self.backbone:
            h = block(h)
        h = self.final_layer_norm(h)
        logits = self.lm_head(h)
        return logits

    @torch.no_grad()
    def generate(self, x, num_new_tokens):
        for _ in range(num_new_tokens):
            context = x[:, -self.config.context_length:]
            logits = self.forward(context)
            last = logits[:, -1, :]
            token = torch.argmax(last, dim=-1, keepdim=True)
            x = torch.cat([x, token], dim=1)
        return x

    def get_loss_on_batch(self, input_ids):
        logits = self.forward(input_ids)
        logits = logits[:, :-1, :]
        targets = input_ids[:, 1:]
        loss = F.cross_entropy(logits.reshape(-1, logits.size(-1)), targets.reshape(-1))
        return loss
"""

TRAIN = """
import torch
import matplotlib.pyplot as plt
from datasets import load_dataset
from transformers import AutoTokenizer
from tqdm import tqdm
from model_solution import ModelConfig, Transformer

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def get_chunked_tinystories(chunk_size):
    return torch.load(f"./datasets/tinystories_10pct_chunk_size_{chunk_size}.pt")


def plot_results(losses, grad_norms, save_path):
    fig, (a, b) = plt.subplots(1, 2)
    a.plot(losses)
    b.plot(grad_norms)
    fig.savefig(save_path)
    plt.close(fig)


def train(learning_rate, gradient_clipping, model_config, batch_size, max_steps=None):
    model = Transformer(model_config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    data = get_chunked_tinystories(model_config.context_length)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
    losses, grad_norms = [], []
    for step, batch in enumerate(loader):
        if max_steps is not None and step >= max_steps:
            break
        batch = batch.to(device)
        loss = model.get_loss_on_batch(batch)
        optimizer.zero_grad()
        loss.backward()
        limit = gradient_clipping if gradient_clipping is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        losses.append(loss.item())
        grad_norms.append(norm.item())
    plot_results(losses, grad_norms, "losses_and_grad_norms.png")


if __name__ == "__main__":
    train(1e-5, 1.0, ModelConfig(33, 3, 3, 512, 50257), 16, 100)
"""


def edited(source: str, *edits: tuple[str, str]) -> str:
    """The source with each (old, new) replaced; the old text has to be there exactly once."""
    for old, new in edits:
        assert source.count(old) == 1, (source.count(old), old)
        source = source.replace(old, new)
    return source


def body(source: str, method: str, new: str) -> str:
    """The source with another body of a method, given as "Class.name". The new one is indented by four blanks."""
    owner, name = method.split(".")
    start = source.index(f"class {owner}(")
    head = source.index(f"    def {name}(self", start)
    begin = source.index("\n", head) + 1
    lines = source[begin:].splitlines(keepends=True)
    length = 0
    for line in lines:
        if line.strip() and not line.startswith("        "):
            break
        length += len(line)
    indented = "".join("    " + line if line.strip() else line for line in new.strip("\n").splitlines(keepends=True))
    return source[:begin] + indented + "\n\n" + source[begin + length :]


def module(name: str, source: str) -> ModuleType:
    """The source as a module, whose lines tracebacks can show."""
    file = f"{name}.py"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made = ModuleType(name)
    sys.modules[name] = made
    exec(compile(source, file, "exec"), made.__dict__)
    return made


def transcript(source: str, parts: tuple[str, ...] = (), **others: str) -> Transcript:
    """What the child would report, made in this process. parts: those to run, () for all. others: train=, utils=."""
    found = Transcript({"model_solution", *others})
    before = {name: sys.modules.get(name) for name in ("model_solution", "train", "utils")}
    modules: dict[str, ModuleType] = {}
    errors: dict[str, Answer] = {}
    try:
        for name, text in {"model_solution": source, **others}.items():
            try:
                modules[name] = module(name, text)
            except Exception as error:
                errors[name] = answer_of_error(error)
    finally:
        for name, old in before.items():
            sys.modules.pop(name, None)
            if old is not None:
                sys.modules[name] = old
    settings = [setting for setting in laws.SETTINGS.values() if not parts or setting.part in parts]
    asked = [(one.name, variant) for variant in ("patched", "own") for one in settings]
    found.begin(asked)
    for header, body in replies(asked, modules, errors, set()):
        found.receive(json.loads(json.dumps(header)), body)
    return found


def judged(source: str, *parts: str, **others: str) -> dict[str, PartResult]:
    """The results of these parts (of all, if none is named)."""
    wanted = parts or laws.GRADED
    found = transcript(source, tuple(parts), **others)
    return {part: outcomes.judge_part(part, found) for part in wanted}

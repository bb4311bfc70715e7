"""Right solutions in various styles: none may fail a part, and none may get a note it does not deserve."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

from grade_solutions import BASE, TEXTBOOK, body, edited
from grade_wrong import CONTEXT, FILL, GELU_LINE, JOIN, LOOP, SCALE, SOFTMAX

ATTENTION, BLOCK, MLP = "CausalAttention.forward", "DecoderBlock.forward", "MLP.forward"
FORWARD, GENERATE, LOSS = "Transformer.forward", "Transformer.generate", "Transformer.get_loss_on_batch"

SDPA = """
    b, t, c = x.shape
    q, k, v = (W(x).unflatten(-1, (-1, self.d_attention)).transpose(1, 2) for W in (self.W_q, self.W_k, self.W_v))
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return self.W_o(z.transpose(1, 2).reshape(b, t, c))
"""
FUSED = """
    b, t, c = x.shape
    h = c // self.d_attention
    weight = torch.cat([self.W_q.weight, self.W_k.weight, self.W_v.weight])
    bias = torch.cat([self.W_q.bias, self.W_k.bias, self.W_v.bias])
    q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
    q, k, v = [p.reshape(b, t, h, -1).permute(0, 2, 1, 3) for p in (q, k, v)]
    scores = torch.matmul(q, k.mT) / torch.sqrt(torch.tensor(self.d_attention))
    mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
    probs = scores.where(mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return self.W_o(torch.matmul(probs, v).permute(0, 2, 1, 3).flatten(-2))
"""
FLOAT_SOFTMAX = """
    b, t, c = x.shape
    q, k, v = (rearrange(W(x), "b t (h d) -> b h t d", d=self.d_attention) for W in (self.W_q, self.W_k, self.W_v))
    s = (q @ k.transpose(-1, -2)) / math.sqrt(self.d_attention)
    s = s.masked_fill(self.causal_mask[..., :t, :t].logical_not(), -math.inf)
    p = torch.softmax(s.float(), dim=-1).to(v.dtype)
    return self.W_o(rearrange(p @ v, "b h t d -> b t (h d)"))
"""
BY_HAND = """
    B, T, C = x.size()
    nh, hs = C // self.d_attention, self.d_attention
    K = self.W_k(x).reshape(B, T, nh, hs).swapaxes(1, 2)
    Q = self.W_q(x).reshape(B, T, nh, hs).swapaxes(1, 2)
    V = self.W_v(x).reshape(B, T, nh, hs).swapaxes(1, 2)
    out = torch.zeros(B, nh, T, hs, device=x.device)
    for i in range(T):
        s = (Q[:, :, i : i + 1] * K[:, :, : i + 1]).sum(-1) / hs ** 0.5
        e = torch.exp(s - s.max(dim=-1, keepdim=True).values)
        w = e / e.sum(-1, keepdim=True)
        out[:, :, i] = (w.unsqueeze(-1) * V[:, :, : i + 1]).sum(-2)
    return self.W_o(out.transpose(1, 2).reshape(B, T, C).to(x.dtype))
"""
CACHED_FORWARD = """
    tokens = self.embeddings(x)
    positions = self.position_embeddings.weight[: x.shape[-1]]
    stream = tokens + positions.unsqueeze(0)
    for i in range(len(self.backbone)):
        stream = self.backbone[i](stream)
    return F.linear(self.final_layer_norm(stream), self.lm_head.weight)
"""
GENERATE_LISTS = """
    rows = x.tolist()
    was = self.training
    self.eval()
    with torch.inference_mode():
        for _ in range(num_new_tokens):
            window = torch.tensor([row[-self.config.context_length:] for row in rows], device=x.device)
            best = self(window)[:, -1].max(dim=-1).indices.tolist()
            rows = [row + [token] for row, token in zip(rows, best)]
    self.train(was)
    return torch.tensor(rows, dtype=x.dtype, device=x.device)
"""
LOSS_GATHER = """
    logp = torch.log_softmax(self(input_ids[:, :-1]), dim=-1)
    picked = torch.gather(logp, 2, input_ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return -picked.mean()
"""

RIGHT: dict[str, str] = {
    "as a student writes it": BASE,
    "the textbook's": TEXTBOOK,
    "scaled_dot_product_attention": body(BASE, ATTENTION, SDPA),
    "one product for q, k, v; a root in float32; the smallest number for minus infinity": body(BASE, ATTENTION, FUSED),
    "a softmax in float32, a mask negated": body(BASE, ATTENTION, FLOAT_SOFTMAX),
    "a loop over queries into a float32 buffer": body(BASE, ATTENTION, BY_HAND),
    "a boolean mask that is kept in the state dict": edited(BASE, ("torch.tril(ones)[None, None], persistent=False", "torch.tril(ones)[None, None].bool()"), (FILL, "scores = scores.masked_fill(~mask, float('-inf'))")),
    "a mask of -1e9": edited(BASE, (FILL, "scores = scores.masked_fill(mask == 0, -1e9)")),
    "no mask buffer, and asserts": edited(BASE, ("        ones = torch.ones(config.context_length, config.context_length)\n", ""), ('        self.register_buffer("causal_mask", torch.tril(ones)[None, None], persistent=False)\n', ""), ("mask = self.causal_mask[:, :, :T, :T]", "assert T > 0 and C % H == 0\n        mask = torch.tril(torch.ones(T, T, device=x.device))")),
    "the scale on the queries": edited(BASE, (SCALE, ""), ("q = self.W_q(x)", "q = self.W_q(x) * self.d_attention ** -0.5")),
    "nn.Softmax, contiguous, extra arguments": edited(BASE, (SOFTMAX, "weights = nn.Softmax(dim=-1)(scores)"), (JOIN, "z = z.permute(0, 2, 1, 3).reshape(B, T, -1)"), ("self.mlp(self.post_layer_norm(x))", "self.mlp(self.post_layer_norm(x), None)"), ("def forward(self, x):\n        h = self.fc1(x)", "def forward(self, x, mask=None, *, scale=1.0):\n        h = self.fc1(x)")),
    "torch's own tanh GELU": edited(BASE, (GELU_LINE, 'return F.gelu(x, approximate="tanh")')),
    "GELU called as a function, no attribute": edited(BASE, ("        self.gelu = GELU()\n", ""), ("h = self.gelu(h)", "h = F.gelu(h, approximate='tanh')")),
    "positions from the table, a loop by index": body(BASE, FORWARD, CACHED_FORWARD),
    "a stack as nn.Sequential": edited(BASE, ("nn.ModuleList([DecoderBlock(config) for _ in range(config.n_layers)])", "nn.Sequential(*[DecoderBlock(config) for _ in range(config.n_layers)])"), (LOOP, "h = self.backbone(h)")),
    "generation with lists": body(BASE, GENERATE, GENERATE_LISTS),
    "loss by gather, from T - 1 tokens": body(BASE, LOSS, LOSS_GATHER),
    "loss of shape (1,)": edited(BASE, ("        return loss\n", "        return loss.unsqueeze(0)\n")),
    "other names": BASE.replace("logits", "scores_out").replace("targets", "labels").replace(" tok", " embedded"),
    "imports of what is not installed": "from transformers import GPT2LMHeadModel\nimport huggingface_hub\n" + BASE,
}  # fmt: skip

# Right by the assignment, with a note: it says nothing about more tokens than the context.
NO_CROP = edited(BASE, (CONTEXT, "context = x"))

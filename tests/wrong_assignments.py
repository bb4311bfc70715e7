"""Wrong and right solutions of the assignment's parts: the textbook with a few characters changed."""

# ruff: noqa: E501

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """A solution: the textbook's file with one text in place of another. part: whose tests are asked about it."""

    part: str
    name: str
    old: str
    new: str


M, T, U = "model_solution.py", "train.py", "utils.py"
FILES = {"train": T, "plot": T, "chunks": T, "converter": U}  # the other parts are in model_solution.py

GELU = "return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))"
MLP = "return self.fc2(self.gelu(self.fc1(x)))"
SCALE = "scores = scores / math.sqrt(self.d_attention)"
PATTERN = "pattern = torch.softmax(scores + self.causal_mask[:, :, :seq, :seq], dim=-1)"
HEADS = 'return self.W_o(rearrange(z, "batch head seq d -> batch seq (head d)"))'
CUT = 'rearrange(project(x), "batch seq (head d) -> batch head seq d", head=self.n_heads)'
FIRST = "x = x + self.attention(self.pre_layer_norm(x))"
SECOND = "x = x + self.mlp(self.post_layer_norm(x))"
BLOCK = f"        {FIRST}\n        {SECOND}\n        return x"
EMBED = "h = self.embeddings(x) + self.position_embeddings(torch.arange(seq, device=x.device))"
BLOCKS = "        for block in self.backbone:\n            h = block(h)\n        # Step 3"
READ = "return self.lm_head(self.final_layer_norm(h))"
CALL = "logits = self(x[:, -self.config.context_length :])"
NEXT = "next_token = logits[:, -1].argmax(dim=-1, keepdim=True)"
APPEND = "x = torch.cat([x, next_token.to(x.dtype)], dim=1)"
SHIFT = "logits = self(input_ids[:, :-1])\n        targets = input_ids[:, 1:]"
ENTROPY = 'rearrange(logits, "batch seq vocab -> (batch seq) vocab"),'
TARGETS = 'rearrange(targets, "batch seq -> (batch seq)").long(),'
MEAN = f"        return F.cross_entropy(\n            {ENTROPY}\n            {TARGETS}\n        )"
BACKWARD = "        optimizer.zero_grad()\n        loss.backward()  # and back\n"
CLIP = "grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)"
RECORD = "        losses.append(loss.item())\n        grad_norms.append(grad_norm.item())\n"
ADAMW = "torch.optim.AdamW(model.parameters(), lr=learning_rate)"
TRANSPOSED = '("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")'

WRONG = [
    # --- GELU and MLP
    Change("gelu", "the form by erf", GELU, "return F.gelu(x)"),
    Change("gelu", "2 / pi without its root", "math.sqrt(2 / math.pi)", "(2 / math.pi)"),
    Change("gelu", "a square for the cube", "x**3", "x**2"),
    Change("gelu", "another constant", "(x + 0.044715 * x**3)))", "(x + 0.04715 * x**3)))"),
    Change("gelu", "by sigmoid(1.702 x)", GELU, "return x * torch.sigmoid(1.702 * x)"),
    Change("gelu", "relu", GELU, "return F.relu(x)"),
    Change("gelu", "without the half", "return 0.5 * x * (1", "return x * (1"),
    Change("mlp", "the form by erf", MLP, "return self.fc2(F.gelu(self.fc1(x)))"),
    Change("mlp", "no GELU", MLP, "return self.fc2(self.fc1(x))"),
    Change("mlp", "GELU first", MLP, "return self.fc2(self.fc1(self.gelu(x)))"),
    Change("mlp", "GELU twice", MLP, "return self.gelu(self.fc2(self.gelu(self.fc1(x))))"),
    Change("mlp", "no biases", MLP, "return self.gelu(x @ self.fc1.weight.T) @ self.fc2.weight.T"),
    Change("mlp", "first bias missing", MLP, "return self.fc2(self.gelu(x @ self.fc1.weight.T))"),
    Change("mlp", "a residual of its own", MLP, "return x + self.fc2(self.gelu(self.fc1(x)))"),
    Change("mlp", "dropout", MLP, "return F.dropout(self.fc2(self.gelu(self.fc1(x))), 0.1, self.training)"),
    Change("mlp", "width d_model", "Linear(config.d_model, 4 * config.d_model)", "Linear(config.d_model, config.d_model)"),
    Change("mlp", "nothing returned", MLP, "self.fc2(self.gelu(self.fc1(x)))"),
    Change("mlp", "detached", MLP, "return self.fc2(self.gelu(self.fc1(x)).detach())"),
    # --- CausalAttention
    Change("attention", "scaled by d_model", SCALE, "scores = scores / math.sqrt(x.shape[-1])"),
    Change("attention", "scaled by the number of heads", SCALE, "scores = scores / math.sqrt(self.n_heads)"),
    Change("attention", "not scaled", SCALE, "pass"),
    Change("attention", "scaled by d, not its root", SCALE, "scores = scores / self.d_attention"),
    Change("attention", "multiplied", SCALE, "scores = scores * math.sqrt(self.d_attention)"),
    Change("attention", "heads merged without transpose", HEADS, "return self.W_o(z.reshape(x.shape))"),
    Change("attention", "heads interleaved", "seq (head d) -> batch head", "seq (d head) -> batch head"),
    Change("attention", "heads merged interleaved", HEADS, HEADS.replace("(head d)", "(d head)")),
    Change("attention", "cut by view", CUT, "project(x).view(len(x), self.n_heads, seq, self.d_attention)"),
    Change("attention", "heads not merged", HEADS, "return z"),
    Change("attention", "one head", CUT, 'rearrange(project(x), "batch seq (head d) -> batch head seq d", head=1)'),
    Change("attention", "no output projection", HEADS, HEADS.replace("self.W_o(", "(")),
    Change("attention", "no bias of W_o", HEADS, HEADS.replace("self.W_o(", "F.linear(").replace('")', '"), self.W_o.weight', 1)),
    Change("attention", "no biases of q, k, v", "project(x),", "(x @ project.weight.T),"),
    Change("attention", "q and k swapped", "(self.W_q, self.W_k, self.W_v)", "(self.W_k, self.W_q, self.W_v)"),
    Change("attention", "k and v swapped", "(self.W_q, self.W_k, self.W_v)", "(self.W_q, self.W_v, self.W_k)"),
    Change("attention", "q for v", "(self.W_q, self.W_k, self.W_v)", "(self.W_q, self.W_k, self.W_q)"),
    Change("attention", "softmax over queries", PATTERN, PATTERN.replace("dim=-1", "dim=-2")),
    Change("attention", "softmax over heads", PATTERN, PATTERN.replace("dim=-1", "dim=1")),
    Change("attention", "no mask", PATTERN, "pattern = torch.softmax(scores, dim=-1)"),
    Change("attention", "mask inverted", PATTERN, PATTERN.replace("self.causal_mask[:, :, :seq, :seq]", "self.causal_mask[:, :, :seq, :seq].mT")),
    Change("attention", "mask of ones added", PATTERN, PATTERN.replace("scores + ", "scores + 1.0 * torch.isinf").replace("torch.isinfself.causal_mask[:, :, :seq, :seq]", "torch.isinf(self.causal_mask[:, :, :seq, :seq])")),
    Change("attention", "scores multiplied by the mask", PATTERN, "pattern = torch.softmax(scores * torch.ones_like(scores).tril(), dim=-1)"),
    Change("attention", "diagonal hidden too", PATTERN, "pattern = torch.softmax(scores.masked_fill(torch.ones(seq, seq).triu() > 0, -1e9), dim=-1)"),
    Change("attention", "one future token seen", PATTERN, "pattern = torch.softmax(scores.masked_fill(torch.ones(seq, seq).triu(2) > 0, -1e9), dim=-1)"),
    Change("attention", "mask after the softmax", PATTERN, "pattern = torch.softmax(scores, dim=-1).tril()"),
    Change("attention", "mask before the scaling, -100", PATTERN, "pattern = torch.softmax(scores + self.causal_mask[:, :, :seq, :seq].clamp(min=-100) / math.sqrt(self.d_attention), dim=-1)"),
    Change("attention", "mask of -10000", PATTERN, PATTERN.replace("self.causal_mask[:, :, :seq, :seq]", "self.causal_mask[:, :, :seq, :seq].clamp(min=-1e4)")),
    Change("attention", "mask not cut", PATTERN, PATTERN.replace("[:, :, :seq, :seq]", "")),
    Change("attention", "exp without a maximum", PATTERN, "pattern = torch.exp(scores + self.causal_mask[:, :, :seq, :seq])\n        pattern = pattern / pattern.sum(-1, keepdim=True)"),
    Change("attention", "dropout of the pattern", PATTERN, PATTERN + "\n        pattern = F.dropout(pattern, 0.1, self.training)"),
    Change("attention", "dropout of the result", HEADS, HEADS.replace("return self.W_o(", "return F.dropout(self.W_o(") [:-1] + "), 0.1, self.training)"),
    Change("attention", "heads averaged", HEADS, 'return self.W_o(rearrange(z, "batch head seq d -> batch seq head d").mean(2).repeat(1, 1, self.n_heads))'),
    Change("attention", "nn.Softmax called wrongly", PATTERN, "pattern = nn.Softmax(scores, dim=-1)"),
    Change("attention", "only the first row's scores", PATTERN, PATTERN + "\n        pattern = pattern[:1].expand_as(pattern)"),
    Change("attention", "pattern detached", PATTERN, PATTERN + "\n        pattern = pattern.detach()"),
    # --- DecoderBlock
    Change("block", "norms swapped", BLOCK, BLOCK.replace("pre_", "x_").replace("post_", "pre_").replace("x_layer", "post_layer")),
    Change("block", "first norm twice", SECOND, SECOND.replace("post_", "pre_")),
    Change("block", "second norm twice", FIRST, FIRST.replace("pre_", "post_")),
    Change("block", "post-norm", BLOCK, "        x = self.pre_layer_norm(x + self.attention(x))\n        return self.post_layer_norm(x + self.mlp(x))"),
    Change("block", "residual from the normalised stream", BLOCK, "        x = self.pre_layer_norm(x)\n        x = x + self.attention(x)\n        x = self.post_layer_norm(x)\n        return x + self.mlp(x)"),
    Change("block", "parallel", BLOCK, "        return x + self.attention(self.pre_layer_norm(x)) + self.mlp(self.post_layer_norm(x))"),
    Change("block", "second residual from the input", BLOCK, "        y = x + self.attention(self.pre_layer_norm(x))\n        return x + self.mlp(self.post_layer_norm(y))"),
    Change("block", "MLP of the plain stream", SECOND, "x = x + self.mlp(x)"),
    Change("block", "attention of the plain stream", FIRST, "x = x + self.attention(x)"),
    Change("block", "no first residual", FIRST, FIRST.replace("x + ", "")),
    Change("block", "no second residual", SECOND, SECOND.replace("x + ", "")),
    Change("block", "MLP first", BLOCK, f"        {SECOND}\n        {FIRST}\n        return x"),
    Change("block", "no attention", f"        {FIRST}\n", ""),
    Change("block", "nothing returned", BLOCK, BLOCK.replace("        return x", "        x")),
    Change("block", "in place", FIRST, "x += self.attention(self.pre_layer_norm(x))"),
    Change("block", "dropout", SECOND, "x = x + F.dropout(self.mlp(self.post_layer_norm(x)), 0.1, self.training)"),
    Change("block", "norm without gain and bias", FIRST, "x = x + self.attention(F.layer_norm(x, x.shape[-1:]))"),
    Change("block", "another epsilon", "self.post_layer_norm = nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS)", "self.post_layer_norm = nn.LayerNorm(config.d_model, eps=1e-3)"),
    # --- Transformer._init_weights
    Change("init", "never scaled", "if scale_residual else INIT_STD", "if False else INIT_STD"),
    Change("init", "always scaled", "if scale_residual else INIT_STD", "if True else INIT_STD"),
    Change("init", "scaled by the root of n_layers", "math.sqrt(2 * self.config.n_layers)", "math.sqrt(self.config.n_layers)"),
    Change("init", "wrong matrix scaled", "block.mlp.fc1.weight, 0, INIT_STD", "block.mlp.fc1.weight, 0, residual_std"),
    Change("init", "fc2 not scaled", "block.mlp.fc2.weight, 0, residual_std", "block.mlp.fc2.weight, 0, INIT_STD"),
    Change("init", "biases left", "nn.init.zeros_(module.bias)\n\n", "pass\n\n"),
    Change("init", "head left", "        nn.init.normal_(self.lm_head.weight, 0, INIT_STD)\n", ""),
    Change("init", "uniform", "nn.init.normal_(self.embeddings.weight, 0, INIT_STD)", "nn.init.uniform_(self.embeddings.weight, -0.0346, 0.0346)"),
    Change("init", "seeded inside", "for module in self.modules():  # nothing random here", "torch.manual_seed(0)\n        for module in self.modules():"),
    Change("init", "standard deviation 0.2", "INIT_STD = 0.02", "INIT_STD = 0.2"),
    # --- Transformer.forward
    Change("forward", "no positions", EMBED, "h = self.embeddings(x)"),
    Change("forward", "positions from the batch", EMBED, EMBED.replace("torch.arange(seq, device=x.device)", "torch.arange(len(x), device=x.device)[:, None]")),
    Change("forward", "one position for all", EMBED, EMBED.replace("torch.arange(seq, device=x.device)", "torch.full_like(x, seq - 1)")),
    Change("forward", "positions from 1", EMBED, EMBED.replace("torch.arange(seq, device=x.device)", "torch.arange(1, seq + 1, device=x.device) % context")),
    Change("forward", "positions backwards", EMBED, EMBED.replace("torch.arange(seq, device=x.device)", "torch.arange(seq, device=x.device).flip(0)")),
    Change("forward", "positions on the CPU", EMBED, EMBED.replace(", device=x.device", "")),
    Change("forward", "positions by token", EMBED, EMBED.replace("torch.arange(seq, device=x.device)", "x % context")),
    Change("forward", "no embeddings", EMBED, EMBED.replace("self.embeddings(x) + ", "x[..., None] * 1.0 + ")),
    Change("forward", "no final norm", READ, "return self.lm_head(h)"),
    Change("forward", "only the first block", BLOCKS, "        h = self.backbone[0](h)\n        # Step 3"),
    Change("forward", "the first block twice", BLOCKS, BLOCKS.replace("block(h)", "self.backbone[0](h)")),
    Change("forward", "blocks backwards", BLOCKS, BLOCKS.replace("self.backbone:", "reversed(self.backbone):")),
    Change("forward", "every block reads the embeddings", BLOCKS, BLOCKS.replace("        for block", "        e = h\n        for block").replace("block(h)", "block(e)")),
    Change("forward", "too long, cut in silence", "            raise ValueError(f\"{seq} tokens do not fit a context of {context}\")\n", "            x, seq = x[:, -context:], context\n"),
    Change("forward", "softmax", READ, READ + ".softmax(-1)"),
    Change("forward", "log softmax", READ, READ + ".log_softmax(-1)"),
    Change("forward", "argmax", READ, READ + ".argmax(-1)"),
    Change("forward", "last position only", READ, READ + "[:, -1]"),
    Change("forward", "last position only, kept", READ, READ + "[:, -1:]"),
    Change("forward", "squeezed", READ, READ + ".squeeze()"),
    Change("forward", "the whole context assumed", EMBED, EMBED.replace("torch.arange(seq,", "torch.arange(context,")),
    Change("forward", "a mask required", "def forward(self, x: Int[Tensor, \"batch seq\"])", "def forward(self, x, mask)"),
    Change("forward", "dropout", EMBED, EMBED + "\n        h = F.dropout(h, 0.1, self.training)"),
    Change("forward", "tied head", READ, "return self.final_layer_norm(h) @ self.embeddings.weight.T"),
    Change("forward", "a norm before the blocks", EMBED, EMBED + "\n        h = self.final_layer_norm(h)"),
    # --- Transformer.generate
    Change("generate", "row 0 for all", NEXT, NEXT.replace("logits[:, -1]", "logits[:1, -1].expand(len(x), -1)")),
    Change("generate", "first position", NEXT, NEXT.replace("logits[:, -1]", "logits[:, 0]")),
    Change("generate", "last but one position", NEXT, NEXT.replace("logits[:, -1]", "logits[:, -2]")),
    Change("generate", "argmax over positions", NEXT, "next_token = logits.argmax(dim=1)[:, -1:]"),
    Change("generate", "least likely", NEXT, NEXT.replace("argmax", "argmin")),
    Change("generate", "no crop", CALL, "logits = self(x)"),
    Change("generate", "cropped at the wrong end", CALL, "logits = self(x[:, : self.config.context_length])"),
    Change("generate", "cropped one too short", CALL, CALL.replace("-self.config.context_length", "1 - self.config.context_length")),
    Change("generate", "returned text cropped", "            logits = self(x[:, -self", "            x = x[:, -self.config.context_length :]\n            logits = self(x[:, -self"),
    Change("generate", "stops at the context", "for _ in range(num_new_tokens):", "for _ in range(min(num_new_tokens, self.config.context_length - x.shape[1])):"),
    Change("generate", "length instead of number", "for _ in range(num_new_tokens):", "for _ in range(num_new_tokens - x.shape[1]):"),
    Change("generate", "one too many", "for _ in range(num_new_tokens):", "for _ in range(num_new_tokens + 1):"),
    Change("generate", "one too few", "for _ in range(num_new_tokens):", "for _ in range(num_new_tokens - 1):"),
    Change("generate", "only the new tokens", APPEND + "\n        return x", APPEND + "\n        return x[:, -num_new_tokens:]"),
    Change("generate", "only the last token", APPEND + "\n        return x", APPEND + "\n        return next_token"),
    Change("generate", "sampled", NEXT, "next_token = torch.multinomial(logits[:, -1].softmax(-1), 1)"),
    Change("generate", "put in front", APPEND, "x = torch.cat([next_token, x], dim=1)"),
    Change("generate", "floating point", APPEND, "x = torch.cat([x, next_token.float()], dim=1)"),
    Change("generate", "all from the first pass", "            logits = self(x[:, -self.config.context_length :])\n", "            logits = logits if _ else self(x[:, -self.config.context_length :])\n"),
    Change("generate", "graph kept", "    @torch.no_grad()  # a graph over hundreds of forward passes would only fill memory\n", ""),
    Change("generate", "left in eval mode", "for _ in range(num_new_tokens):", "self.eval()\n        for _ in range(num_new_tokens):"),
    Change("generate", "one batch row", NEXT, "next_token = logits[:, -1].argmax().view(1, 1)"),
    # --- Transformer.get_loss_on_batch
    Change("loss", "no shift", SHIFT, "logits, targets = self(input_ids), input_ids"),
    Change("loss", "shifted twice", SHIFT, "logits, targets = self(input_ids[:, :-2]), input_ids[:, 2:]"),
    Change("loss", "shifted the wrong way", SHIFT, "logits, targets = self(input_ids[:, 1:]), input_ids[:, :-1]"),
    Change("loss", "softmax first", ENTROPY, ENTROPY.replace("(logits,", "(logits.softmax(-1),")),
    Change("loss", "sum", TARGETS, TARGETS + '\n            reduction="sum",'),
    Change("loss", "not reduced", TARGETS, TARGETS + '\n            reduction="none",'),
    Change("loss", "token 0 ignored", TARGETS, TARGETS + "\n            ignore_index=0,"),
    Change("loss", "smoothed", TARGETS, TARGETS + "\n            label_smoothing=0.1,"),
    Change("loss", "reshaped without transpose", ENTROPY, "logits.mT.reshape(-1, logits.shape[-1]),"),
    Change("loss", "rows mixed up", TARGETS, TARGETS.replace("(batch seq)", "(seq batch)")),
    Change("loss", "last prediction only", MEAN, "        return F.cross_entropy(logits[:, -1], targets[:, -1])"),
    Change("loss", "first prediction left out", SHIFT, SHIFT + "\n        logits, targets = logits[:, 1:], targets[:, 1:]"),
    Change("loss", "first row only", SHIFT, SHIFT + "\n        logits, targets = logits[:1], targets[:1]"),
    Change("loss", "a number", MEAN, MEAN + ".item()"),
    Change("loss", "detached", MEAN, MEAN + ".detach()"),
    Change("loss", "in bits", MEAN, MEAN + " / math.log(2)"),
    Change("loss", "the sign", MEAN, MEAN.replace("return F", "return -F")),
    Change("loss", "perplexity", MEAN, MEAN + ".exp()"),
    Change("loss", "divided by all tokens", MEAN, MEAN + " * targets.numel() / input_ids.numel()"),
    # --- state_dict_converter, from_pretrained
    Change("converter", "attn.c_proj not transposed", TRANSPOSED, TRANSPOSED.replace('"attn.c_proj", ', "")),
    Change("converter", "nothing transposed", TRANSPOSED, "()"),
    Change("converter", "k before q", '("W_q", "W_k", "W_v")', '("W_k", "W_q", "W_v")'),
    Change("converter", "norms swapped", '"ln_1": "pre_layer_norm",\n    "ln_2": "post_layer_norm"', '"ln_2": "pre_layer_norm",\n    "ln_1": "post_layer_norm"'),
    Change("converter", "first digit of the layer only", '    part, kind = part.rsplit(".", maxsplit=1)', '    layer = layer[0]\n    part, kind = part.rsplit(".", maxsplit=1)'),
    Change("converter", "masks kept", 'if part in ("attn.bias", "attn.masked_bias"):', 'if part == "attn.masked_bias":'),
    Change("converter", "thirds interleaved", '"(three d_out) ... -> three d_out ..."', '"(d_out three) ... -> three d_out ..."'),
    Change("converter", "head missing", 'converted["lm_head.weight"] = converted["embeddings.weight"].clone()', "pass"),
    Change("converter", "head shared", 'converted["embeddings.weight"].clone()', 'converted["embeddings.weight"]'),
    Change("converter", "prefix required", 'name = key.removeprefix("transformer.")', 'name = key[len("transformer.") :] if key != "lm_head.weight" else key'),
    Change("pretrained", "always gpt2", "GPT2LMHeadModel.from_pretrained(name_or_folder)", 'GPT2LMHeadModel.from_pretrained("gpt2")'),
    Change("pretrained", "sizes of gpt2", "n_layers=theirs.config.n_layer", "n_layers=12"),
    Change("pretrained", "layers for heads", "n_heads=theirs.config.n_head", "n_heads=theirs.config.n_layer"),
    Change("pretrained", "not loaded", "        model.load_state_dict(state_dict_converter(theirs.state_dict()))\n", ""),
    Change("pretrained", "nothing returned", "        return model\n", ""),
    Change("pretrained", "any activation", '            "activation_function": "gelu_new",', ""),
    Change("pretrained", "any epsilon", '            "layer_norm_epsilon": LAYER_NORM_EPS,\n', ""),
    # --- train.py
    Change("chunks", "windows of stride 1", "chunks = tokens[: num_chunks * chunk_size].reshape(num_chunks, chunk_size)", "chunks = np.lib.stride_tricks.sliding_window_view(tokens, chunk_size)"),
    Change("chunks", "columns for rows", ".reshape(num_chunks, chunk_size)", ".reshape(chunk_size, num_chunks).T"),
    Change("chunks", "int32", "chunks.astype(np.int64)", "chunks.astype(np.int32)"),
    Change("chunks", "int16", "chunks.astype(np.int64)", "chunks.astype(np.int16).astype(np.int64)"),
    Change("chunks", "no chunk is fine", "if num_chunks == 0:", "if False:"),
    Change("chunks", "the rest at the front", "tokens[: num_chunks * chunk_size]", "tokens[len(tokens) - num_chunks * chunk_size :]"),
    Change("chunks", "last chunk dropped", "num_chunks = len(tokens) // chunk_size\n", "num_chunks = max(len(tokens) // chunk_size - 1, 1 if len(tokens) >= chunk_size else 0)\n"),
    Change("train", "no zero_grad", "        optimizer.zero_grad()\n", ""),
    Change("train", "zero_grad after backward", BACKWARD, "        loss.backward()\n        optimizer.zero_grad()\n"),
    Change("train", "no step", "        optimizer.step()\n", ""),
    Change("train", "step before clipping", f"        {CLIP}\n", f"        optimizer.step()\n        {CLIP}\n        optimizer.zero_grad()\n"),
    Change("train", "not clipped", CLIP, CLIP.replace("limit", "math.inf")),
    Change("train", "clipped by value", CLIP, CLIP.replace("limit", "math.inf") + "\n        torch.nn.utils.clip_grad_value_(model.parameters(), limit)"),
    Change("train", "norm after clipping", CLIP, CLIP + "\n        grad_norm = grad_norm.clamp(max=limit)"),
    Change("train", "the largest norm", CLIP, CLIP + "\n        grad_norm = max(p.grad.norm() for p in model.parameters())"),
    Change("train", "tensors kept", RECORD, "        losses.append(loss)\n        grad_norms.append(grad_norm)\n"),
    Change("train", "Adam", ADAMW, ADAMW.replace("AdamW", "Adam")),
    Change("train", "SGD", ADAMW, ADAMW.replace("AdamW", "SGD")),
    Change("train", "learning rate left out", ADAMW, "torch.optim.AdamW(model.parameters())"),
    Change("train", "another weight decay", ADAMW, ADAMW.replace("lr=", "weight_decay=0.1, lr=")),
    Change("train", "one batch for ever", "        batch = chunks[list(itertools.islice(order, batch_size))].to(device)\n", "        batch = chunks[:batch_size].to(device)\n"),
    Change("train", "in order", "chunks[list(itertools.islice(order, batch_size))]", "chunks[[(step * batch_size + i) % len(chunks) for i in range(batch_size)]]"),
    Change("train", "one row a batch", "itertools.islice(order, batch_size)", "itertools.islice(order, 1)"),
    Change("train", "loss after the step", "        optimizer.step()\n", "        optimizer.step()\n        losses[-1] = model.get_loss_on_batch(batch).item()\n"),
    Change("train", "one step too few", "range(max_steps), desc", "range(max_steps - 1), desc"),
    Change("train", "lists swapped", "    return losses, grad_norms", "    return grad_norms, losses"),
    Change("train", "nothing returned", "    return losses, grad_norms", "    pass"),
    Change("train", "a scheduled rate", "        optimizer.step()\n", "        optimizer.step()\n        optimizer.param_groups[0]['lr'] *= 0.9\n"),
    Change("plot", "one panel", "(panels[1], grad_norms,", "(panels[0], grad_norms,"),
    Change("plot", "the losses twice", "(panels[1], grad_norms,", "(panels[1], losses,"),
    Change("plot", "panels swapped", "(panels[0], losses,", "(panels[0], grad_norms,"),
    Change("plot", "not written", "    figure.savefig(save_path, dpi=150)\n", ""),
    Change("plot", "somewhere else", "figure.savefig(save_path, dpi=150)", 'figure.savefig(str(save_path) + ".png")'),
    Change("plot", "a PDF", "dpi=150", 'format="pdf"'),
    Change("plot", "no titles", "title=title, ", ""),
    Change("plot", "no names", ', xlabel="step", ylabel=label', ""),
    Change("plot", "written after show", "    figure = Figure(figsize=(11, 4), layout=\"constrained\")\n", "    import matplotlib.pyplot as plt\n\n    figure = plt.figure()\n    plt.show()\n    plt.savefig(save_path)\n    return\n"),
    Change("plot", "left open", 'Figure(figsize=(11, 4), layout="constrained")', '__import__("matplotlib.pyplot").pyplot.figure(figsize=(11, 4))'),
]  # fmt: skip

RIGHT = [
    Change("gelu", "by torch", GELU, 'return F.gelu(x, approximate="tanh")'),
    Change("gelu", "by sigmoid", GELU, "return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))"),
    Change("mlp", "by torch", MLP, 'return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))'),
    Change("attention", "by torch", "        # Step 2, equation (4)", "        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)\n        return self.W_o(z.transpose(1, 2).reshape(x.shape))\n        # Step 2, equation (4)"),
    Change("attention", "a float32 root", SCALE, "scores = scores / torch.sqrt(torch.tensor(self.d_attention))"),
    Change("attention", "softmax in float32", PATTERN, PATTERN.replace("torch.softmax(scores +", "torch.softmax(scores.float() +") + ".to(v.dtype)"),
    Change("attention", "filled with -1e9", PATTERN, "pattern = torch.softmax(scores.masked_fill(self.causal_mask[:, :, :seq, :seq] < 0, -1e9), dim=-1)"),
    Change("attention", "filled with the smallest number", PATTERN, "pattern = torch.softmax(scores.masked_fill(self.causal_mask[:, :, :seq, :seq] < 0, torch.finfo(scores.dtype).min), dim=-1)"),
    Change("attention", "query scaled first", SCALE, "scores = einsum(q / math.sqrt(self.d_attention), k, 'b h q d, b h k d -> b h q k')"),
    Change("attention", "by view and transpose", CUT, "project(x).view(len(x), seq, self.n_heads, self.d_attention).transpose(1, 2)"),
    Change("attention", "with asserts and a print", SCALE, SCALE + "\n        assert scores.shape[-1] == seq\n        print(scores.shape)"),
    Change("attention", "softmax by hand", PATTERN, "scores = scores + self.causal_mask[:, :, :seq, :seq]\n        pattern = (scores - scores.amax(-1, keepdim=True)).exp()\n        pattern = pattern / pattern.sum(-1, keepdim=True)"),
    Change("block", "other names", BLOCK, "        residual = x\n        y = self.attention(self.pre_layer_norm(x)) + residual\n        return self.mlp(self.post_layer_norm(y)) + y"),
    Change("init", "by module", "        for module in self.modules():  # nothing random here", "        for name, p in self.named_parameters():\n            if p.dim() == 2:\n                end = name.endswith(('W_o.weight', 'fc2.weight')) and scale_residual\n                p.data = torch.randn_like(p) * (0.02 / math.sqrt(2 * self.config.n_layers) if end else 0.02)\n            else:\n                p.data = torch.full_like(p, float(name.endswith('norm.weight')))\n        return\n        for module in self.modules():"),
    Change("forward", "a slice of the table", EMBED, "h = self.embeddings(x) + self.position_embeddings.weight[:seq]"),
    Change("forward", "by index, moved", EMBED, EMBED.replace("torch.arange(seq, device=x.device)", "torch.arange(seq).unsqueeze(0).to(x.device)")),
    Change("forward", "with an assertion on values", EMBED, EMBED + "\n        assert x.max() < self.config.vocab_size"),
    Change("forward", "an optional argument", 'def forward(self, x: Int[Tensor, "batch seq"])', "def forward(self, x, targets=None)"),
    Change("generate", "by forward, with topk", NEXT, "next_token = torch.topk(self.forward(x[:, -self.config.context_length :])[:, -1, :], 1, dim=-1).indices"),
    Change("generate", "crops only if needed", CALL, "logits = self(x if x.shape[1] <= self.config.context_length else x[:, -self.config.context_length :])"),
    Change("generate", "eval and back", "for _ in range(num_new_tokens):", "was = self.training\n        self.eval()\n        self.train(was)\n        for _ in range(num_new_tokens):"),
    Change("loss", "all logits, the last dropped", SHIFT, "logits, targets = self(input_ids)[:, :-1], input_ids[:, 1:]"),
    Change("loss", "by hand", MEAN, "        return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()"),
    Change("loss", "classes in the middle", MEAN, "        return F.cross_entropy(logits.transpose(1, 2), targets)"),
    Change("converter", "views", "third.clone()", "third"),
    Change("train", "clipped only if asked", CLIP, "norms = [p.grad.norm() for p in model.parameters()]\n        grad_norm = torch.stack(norms).norm()\n        if gradient_clipping is not None:\n            torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clipping)"),
    Change("train", "step, then record", RECORD, RECORD + "        float(loss)\n"),
    Change("plot", "by pyplot", 'Figure(figsize=(11, 4), layout="constrained")\n    panels = figure.subplots(1, 2)', '__import__("matplotlib.pyplot").pyplot.figure(figsize=(11, 4))\n    panels = [figure.add_subplot(1, 2, i) for i in (1, 2)]\n    __import__("matplotlib.pyplot").pyplot.close(figure)'),
]  # fmt: skip

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
BACKWARD = "        optimizer.zero_grad()\n        loss.backward()  # and back\n"
CLIP = "grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)"
RECORD = "        losses.append(loss.item())\n        grad_norms.append(grad_norm.item())\n"
ADAMW = "torch.optim.AdamW(model.parameters(), lr=learning_rate)"
TRANSPOSED = '("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")'

WRONG = [
    Change("init", "never scaled", "if scale_residual else INIT_STD", "if False else INIT_STD"),
    Change("init", "always scaled", "if scale_residual else INIT_STD", "if True else INIT_STD"),
    Change("init", "scaled by the root of n_layers", "math.sqrt(2 * self.config.n_layers)", "math.sqrt(self.config.n_layers)"),
    Change("init", "wrong matrix scaled", "block.mlp.fc1.weight, 0, INIT_STD", "block.mlp.fc1.weight, 0, residual_std"),
    Change("init", "biases left", "nn.init.zeros_(module.bias)\n\n", "pass\n\n"),
    Change("init", "uniform", "nn.init.normal_(self.embeddings.weight, 0, INIT_STD)", "nn.init.uniform_(self.embeddings.weight, -0.0346, 0.0346)"),
    Change("init", "seeded inside", "for module in self.modules():  # nothing random here", "torch.manual_seed(0)\n        for module in self.modules():"),
    Change("converter", "attn.c_proj not transposed", TRANSPOSED, TRANSPOSED.replace('"attn.c_proj", ', "")),
    Change("converter", "k before q", '("W_q", "W_k", "W_v")', '("W_k", "W_q", "W_v")'),
    Change("converter", "norms swapped", '"ln_1": "pre_layer_norm",\n    "ln_2": "post_layer_norm"', '"ln_2": "pre_layer_norm",\n    "ln_1": "post_layer_norm"'),
    Change("converter", "first digit of the layer only", '    part, kind = part.rsplit(".", maxsplit=1)', '    layer = layer[0]\n    part, kind = part.rsplit(".", maxsplit=1)'),
    Change("converter", "thirds interleaved", '"(three d_out) ... -> three d_out ..."', '"(d_out three) ... -> three d_out ..."'),
    Change("converter", "head missing", 'converted["lm_head.weight"] = converted["embeddings.weight"].clone()', "pass"),
    Change("converter", "prefix required", 'name = key.removeprefix("transformer.")', 'name = key[len("transformer.") :] if key != "lm_head.weight" else key'),
    Change("pretrained", "always gpt2", "GPT2LMHeadModel.from_pretrained(name_or_folder)", 'GPT2LMHeadModel.from_pretrained("gpt2")'),
    Change("pretrained", "sizes of gpt2", "n_layers=theirs.config.n_layer", "n_layers=12"),
    Change("pretrained", "layers for heads", "n_heads=theirs.config.n_head", "n_heads=theirs.config.n_layer"),
    Change("pretrained", "not loaded", "        model.load_state_dict(state_dict_converter(theirs.state_dict()))\n", ""),
    Change("pretrained", "any activation", '            "activation_function": "gelu_new",', ""),
    Change("chunks", "windows of stride 1", "chunks = tokens[: num_chunks * chunk_size].reshape(num_chunks, chunk_size)", "chunks = np.lib.stride_tricks.sliding_window_view(tokens, chunk_size)"),
    Change("chunks", "columns for rows", ".reshape(num_chunks, chunk_size)", ".reshape(chunk_size, num_chunks).T"),
    Change("chunks", "int16", "chunks.astype(np.int64)", "chunks.astype(np.int16).astype(np.int64)"),
    Change("chunks", "no chunk is fine", "if num_chunks == 0:", "if False:"),
    Change("chunks", "the rest at the front", "tokens[: num_chunks * chunk_size]", "tokens[len(tokens) - num_chunks * chunk_size :]"),
    Change("train", "no zero_grad", "        optimizer.zero_grad()\n", ""),
    Change("train", "zero_grad after backward", BACKWARD, "        loss.backward()\n        optimizer.zero_grad()\n"),
    Change("train", "no step", "        optimizer.step()\n", ""),
    Change("train", "not clipped", CLIP, CLIP.replace("limit", "math.inf")),
    Change("train", "clipped by value", CLIP, CLIP.replace("limit", "math.inf") + "\n        torch.nn.utils.clip_grad_value_(model.parameters(), limit)"),
    Change("train", "norm after clipping", CLIP, CLIP + "\n        grad_norm = grad_norm.clamp(max=limit)"),
    Change("train", "tensors kept", RECORD, "        losses.append(loss)\n        grad_norms.append(grad_norm)\n"),
    Change("train", "Adam", ADAMW, ADAMW.replace("AdamW", "Adam")),
    Change("train", "learning rate left out", ADAMW, "torch.optim.AdamW(model.parameters())"),
    Change("train", "another weight decay", ADAMW, ADAMW.replace("lr=", "weight_decay=0.1, lr=")),
    Change("train", "one batch for ever", "        batch = chunks[list(itertools.islice(order, batch_size))].to(device)\n", "        batch = chunks[:batch_size].to(device)\n"),
    Change("train", "in order", "chunks[list(itertools.islice(order, batch_size))]", "chunks[[(step * batch_size + i) % len(chunks) for i in range(batch_size)]]"),
    Change("train", "one row a batch", "itertools.islice(order, batch_size)", "itertools.islice(order, 1)"),
    Change("train", "loss after the step", "        optimizer.step()\n", "        optimizer.step()\n        losses[-1] = model.get_loss_on_batch(batch).item()\n"),
    Change("train", "lists swapped", "    return losses, grad_norms", "    return grad_norms, losses"),
    Change("train", "nothing returned", "    return losses, grad_norms", "    pass"),
    Change("train", "norms summed", CLIP, "total = sum(p.grad.norm() for p in model.parameters())\n        " + CLIP + "\n        grad_norm = total"),
    Change("train", "batches overlap", "chunks[list(itertools.islice(order, batch_size))]", "chunks[step : step + batch_size]"),
    Change("train", "plotted, and an error", "    return losses, grad_norms", "    plot_results(losses, grad_norms, 'a.png')\n    torch.save({}, 'nowhere/model.pt')"),
    Change("plot", "one panel", "(panels[1], grad_norms,", "(panels[0], grad_norms,"),
    Change("plot", "not written", "    figure.savefig(save_path, dpi=150)\n", ""),
    Change("plot", "a PDF", "dpi=150", 'format="pdf"'),
    Change("plot", "no names", ', xlabel="step", ylabel=label', ""),
    Change("plot", "written after show", "    figure = Figure(figsize=(11, 4), layout=\"constrained\")\n", "    import matplotlib.pyplot as plt\n\n    figure = plt.figure()\n    plt.show()\n    plt.savefig(save_path)\n    return\n"),
    Change("plot", "left open", 'Figure(figsize=(11, 4), layout="constrained")', '__import__("matplotlib.pyplot").pyplot.figure(figsize=(11, 4))'),
]  # fmt: skip

RIGHT = [
    Change("init", "by module", "        for module in self.modules():  # nothing random here", "        for name, p in self.named_parameters():\n            if p.dim() == 2:\n                end = name.endswith(('W_o.weight', 'fc2.weight')) and scale_residual\n                p.data = torch.randn_like(p) * (0.02 / math.sqrt(2 * self.config.n_layers) if end else 0.02)\n            else:\n                p.data = torch.full_like(p, float(name.endswith('norm.weight')))\n        return\n        for module in self.modules():"),
    Change("converter", "views", "third.clone()", "third"),
    Change("train", "clipped only if asked", CLIP, "norms = [p.grad.norm() for p in model.parameters()]\n        grad_norm = torch.stack(norms).norm()\n        if gradient_clipping is not None:\n            torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clipping)"),
    Change("train", "step, then record", RECORD, RECORD + "        float(loss)\n"),
    Change("plot", "by pyplot", 'Figure(figsize=(11, 4), layout="constrained")\n    panels = figure.subplots(1, 2)', '__import__("matplotlib.pyplot").pyplot.figure(figsize=(11, 4))\n    panels = [figure.add_subplot(1, 2, i) for i in (1, 2)]\n    __import__("matplotlib.pyplot").pyplot.close(figure)'),
]  # fmt: skip

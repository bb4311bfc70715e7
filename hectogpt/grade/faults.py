"""Mistakes that no wrong number shows: those that leave every value right and break the gradient; and those that end in
an error or in a result that is no tensor, with a rule for each message, tried in order."""

# ruff: noqa: E501  # tables, an entry a line
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hectogpt.grade.computation import Computation, Method, Mistake, mistake
from hectogpt.grade.mistakes import halves
from hectogpt.grade.result import Diagnosis

# --- the gradient: what is detached, or taken by .data ----------------------------------------------------------------


def detached(method: str) -> Method:
    """The right method, whose result carries no gradient."""

    def right(self: Computation, *arguments: Any) -> Any:
        made = getattr(Computation, method)(self, *arguments)
        return tuple(t.detach() for t in made) if isinstance(made, tuple) else made.detach()

    return right


def of_detached(method: str) -> Method:
    """The right method of an input that carries no gradient."""
    return lambda self, *a: getattr(Computation, method)(self, *a[:-1], a[-1].detach())


def cut(
    name: str, where: str, *methods: str, by: Callable[[str], Method] = detached, what: str = "", **changes: Method
) -> Mistake:
    """Something, which is also where to look if nothing else is said, is cut off by these methods, or by changes."""
    sentence = f"{(what or where)[0].upper()}{(what or where)[1:]} is cut off from the gradient: detached, taken by .data, or computed under no_grad."
    return Mistake(name, where, sentence, {method: by(method) for method in methods} | changes)


def linear(self: Computation, name: str, x: Tensor, bias: bool) -> Tensor:
    b = self.w[name + ".bias"]
    return x @ self.w[name + ".weight"].detach().T + (b.detach() if bias else b)


def one_of_three(name: str, change: Callable[[Computation, str, Tensor], Tensor]) -> Method:
    """Queries, keys and values, that of the matrix `name` in another way."""
    return lambda self, p, x: tuple(
        (change if n == name else type(self).linear)(self, p + n, x) for n in ("W_q", "W_k", "W_v")
    )


def data(names: tuple[str, ...], changes: Callable[[str, bool], dict[str, Method]]) -> list[Mistake]:
    """For each matrix: its weight, or weight and bias, taken by .data."""
    made = []
    for name, bias in ((name, bias) for name in names for bias in (False, True)):
        what = f"The weight{' and the bias' * bias} of {name} {'are' if bias else 'is'} cut off from the gradient, by .data or detach."
        made.append(Mistake(f"{name}'s weight{' and bias' * bias} by .data", name, what, changes(name, bias)))
    return made


RESULT = "the result"
GRADIENTS: dict[str, list[Mistake]] = {
    "gelu": [
        cut("no gradient", "GELU.forward", "gelu", what=RESULT),
        cut("tanh detached", "GELU.forward", what="what stands in the bracket with tanh", gelu=lambda s, x: x * (Computation.gelu(s, x) / x).detach()),
    ],
    "mlp": [
        cut("no gradient", "MLP.forward", "narrow", what=RESULT),
        cut("hidden layer detached", "what goes into fc2", "bend"),
        cut("input detached", "what goes into fc1", "widen", by=of_detached, what="the input"),
        *data(("fc1", "fc2"), lambda name, bias: {"widen" if name == "fc1" else "narrow": lambda s, p, x: linear(s, p + name, x, bias)}),
    ],
    "attention": [
        cut("no gradient", "CausalAttention.forward", "output", what=RESULT),
        cut("pattern detached", "scores and softmax", "pattern", what="the pattern of attention"),
        cut("heads detached", "what goes into W_o", "join"),
        cut("input detached", "what goes into W_q, W_k and W_v", "project", by=of_detached, what="the input"),
        *(cut(f"{words} detached", f"the {words}", what=f"what {name} returns", project=one_of_three(name, lambda s, n, x: s.linear(n, x).detach())) for name, words in (("W_q", "queries"), ("W_k", "keys"), ("W_v", "values"))),
        *data(("W_q", "W_k", "W_v"), lambda name, bias: {"project": one_of_three(name, lambda s, n, x: linear(s, n, x, bias))}),
        *data(("W_o",), lambda name, bias: {"output": lambda s, p, z: linear(s, p + name, z, bias)}),
        *(mistake(f"all projections{' and biases' * bias} by .data", "the projections", "The weights of the projections are cut off from the gradient, by .data or detach.", project=lambda s, p, x, bias=bias: tuple(linear(s, p + n, x, bias) for n in ("W_q", "W_k", "W_v"))) for bias in (False, True)),
    ],
    "block": [
        cut("no gradient", "DecoderBlock.forward", "second_half", what=RESULT),
        cut("residual detached", "the residual sums", what="in both sums the stream", **halves(lambda x, norm, part: x.detach() + part(norm(x)))),
        cut("first residual detached", "the first sum", what="in the first sum the stream", **halves(lambda x, norm, part: x.detach() + part(norm(x)), "attention")),
        cut("second residual detached", "the second sum", what="in the second sum the stream", **halves(lambda x, norm, part: x.detach() + part(norm(x)), "MLP")),
        cut("attention under no_grad", "the attention half of the block", "attend", what="what attention returns"),
        cut("MLP under no_grad", "the MLP half of the block", "think", what="what the MLP returns"),
        cut("pre_layer_norm detached", "what goes into attention", "first_norm"),
        cut("post_layer_norm detached", "what goes into the MLP", "second_norm"),
        cut("norm of a detached stream, at attention", "what goes into pre_layer_norm", "first_norm", by=of_detached),
        cut("norm of a detached stream, at the MLP", "what goes into post_layer_norm", "second_norm", by=of_detached),
        cut("input detached", "the block's input", "first_half", by=of_detached),
        cut("stream detached between the halves", "between attention and MLP", "second_half", by=of_detached, what="the stream between attention and MLP"),
    ],
    "forward": [
        cut("no gradient", "Transformer.forward", "head", what=RESULT),
        cut("token embeddings detached", "the token embeddings", "tokens", what="the token embeddings' table"),
        cut("position embeddings detached", "the position embeddings", "positions", what="the position embeddings' table"),
        cut("embeddings detached", "what goes into the blocks", "embed"),
        cut("blocks under no_grad", "what comes out of the blocks", "backbone"),
        cut("final norm detached", "what goes into lm_head", "final_norm"),
        mistake("lm_head by .data", "the head", "The weight of lm_head is cut off from the gradient, by .data or detach.", head=lambda s, x: x @ s.w["lm_head.weight"].detach().T),
        cut("stream detached before each block", "the loop over the blocks", "block", by=of_detached, what="what goes into each block"),
    ],
    "loss": [mistake("no gradient", "the gradient", "The result carries no gradient: it was detached or made a plain number.", finish=detached("finish"))],
}  # fmt: skip


# --- messages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """pattern: searched in "ErrorName: message | line of code", or in what came instead of a tensor. parts: where the
    rule holds, () for all."""

    name: str
    pattern: str
    where: str
    what: str
    parts: tuple[str, ...] = ()


FAULTS = (
    Fault("prints without end", r"^output flood: .*printed", "a print in the function", "The function prints far too much, or without end."),
    Fault("nothing returned", r"^result: None", "the end of the function", "The result is computed but nothing is returned: the return is missing."),
    Fault("changed in place", r"modified by an inplace operation|leaf Variable that requires grad", "a sum or mask in place", "A tensor that the gradient needs is changed in place, by += say: backward fails. A new tensor is asked for."),
    Fault("a helper returns nothing", r"not NoneType|'NoneType' (object|and)|got NoneType|NoneType: None", "a helper function", "A function of yours that is called here computes its result but does not return it: the return is missing."),
    Fault("exception raised for return", r"exceptions must derive from BaseException", "the end of the function", "The result is raised as an exception: `raise` stands where `return` belongs."),
    Fault("several values returned", r"^result: a (tuple|list)", "the end of the function", "Several values are returned; one tensor is asked for."),
    Fault("layers outside a ModuleList", r"LookupError: parameters differ.*missing: backbone\.0\.mlp\.fc1\.weight", "the constructor of Transformer", "The blocks are not registered: a plain list hides their parameters from PyTorch."),
    Fault("bias missing in a layer", r"LookupError: parameters differ.*missing: [\w., ]*bias(?!.*missing: [\w., ]*weight)", "the constructor", "A linear layer has been made without its bias."),
    Fault("d_ff is not 4 d_model", r"LookupError: parameters differ.*fc[12]\.", "the constructor of MLP", "The hidden layer of the MLP has to be 4 d_model wide."),
    Fault("parameters of one head's width", r"LookupError: parameters differ.*W_[kqvo]\.\w+: \[", "the constructor of CausalAttention", "A projection has another shape than (d_model, d_model); all heads share one matrix."),
    Fault("parameters renamed", r"LookupError: parameters differ", "the constructor", "Names or shapes of parameters are not the assignment's."),
    Fault("nn.Softmax given the scores", r"TypeError: .*Softmax.*|TypeError: .*'dim'.*\| .*Softmax\(|RuntimeError: .*ambiguous.*\| .*Softmax\(", "the softmax", "nn.Softmax is a class: it is built with its axis first, then called with the scores.", ("attention",)),
    Fault("shape called", r"'torch.Size' object is not callable", "reading a shape", "`shape` is an attribute; it is not called."),
    Fault("n_heads not stored", r"AttributeError: .*has no attribute '(n_heads|num_heads|n_head|num_attention_heads|d_head|head_dim)'", "the attributes of the module", "The module has no such attribute: only what its constructor stores is there (the head's width is, and d_model with it)."),
    Fault("attribute missing", r"AttributeError: .*has no attribute", "the attributes of a module", "An attribute is used that nothing has set."),
    Fault("name not defined", r"NameError|UnboundLocalError", "a name", "A name is used that is not defined there."),
    Fault("extra required argument", r"missing \d+ required positional argument", "the arguments", "A function asks for an argument that its caller does not give; extra arguments need a default."),
    Fault("positions not in the table", r"IndexError: index out of range", "the position embeddings", "A table is asked for a row that it does not have.", ("forward",)),
    Fault("context overrun", r"IndexError: index out of range|do not fit a context|must match the size of tensor", "what the model is given at each step", "The model is given more tokens than its context holds.", ("generate",)),
    Fault("mask not sliced", r"RuntimeError: The size of tensor a \(\d+\) must match the size of tensor b \(10|7\)", "the causal mask", "The mask is not cut to the length of the input: only inputs as long as the context work.", ("attention",)),
    Fault("heads not joined before W_o", r"mat1 and mat2 shapes cannot be multiplied.*\| .*W_o", "joining the heads", "What reaches W_o does not have d_model numbers at each position: the heads are not put side by side.", ("attention",)),
    Fault("mask of another shape", r"must match the size of tensor.*\| .*mask", "the causal mask", "The mask and the scores have different shapes: the mask has to be cut to (T, T).", ("attention",)),
    Fault("view of a transposed tensor", r"view size is not compatible", "a change of shape", "A transposed or sliced tensor cannot be viewed in another shape: it has to be made contiguous, or reshaped."),
    Fault("the new token lacks an axis", r"same number of dimensions|Sizes of tensors must match", "appending the new token", "The new tokens have another number of axes than the text: one token a row makes a column.", ("generate",)),
    Fault("position embeddings of another shape", r"must match the size of tensor.*\| .*pos", "the position embeddings", "Token and position embeddings have different lengths: positions are counted along the sequence.", ("forward",)),
    Fault("no axis given", r"Implicit dimension choice", "the softmax", "The softmax has no axis: it has to run over the keys.", ("attention",)),
    Fault("shapes do not fit in a product", r"mat1 and mat2 shapes|Expected size for first two dimensions|must match the size of tensor|shape .* is invalid|einsum|Shape mismatch|EinopsError", "shapes", "The shapes of two tensors do not fit together."),
    Fault("cross entropy over the wrong axis", r"Expected target size|Expected input batch_size|Expected target", "the shapes given to cross entropy", "Cross entropy wants the classes on the second axis: logits and targets have to be flattened alike, or transposed.", ("loss",)),
    Fault("index out of range", r"IndexError", "an index", "An index is larger than the axis it is used on."),
    Fault("endless recursion", r"RecursionError", "a call", "A function calls itself without end."),
    Fault("exit called", r"^SystemExit|SystemExit:|^crashed: .*exit code 0", "a call of exit", "The code ends the program."),
    Fault("something that needs the network", r"OfflineError:|no network while grading", "a download", "The code uses something that has to be downloaded."),
    Fault("device", r"Torch not compiled with CUDA|No CUDA GPUs|Found no NVIDIA|different devices|same device", "the device of a tensor", "A tensor is made on a fixed device; it has to be on that of the input."),
    Fault("dtype", r"expected scalar type|same dtype|must have the same dtype|Expected tensor for argument .* scalar types", "the dtype of a tensor", "Two tensors have different dtypes."),
)  # fmt: skip


def by_words(part: str, words: str) -> Diagnosis | None:
    """The first rule that holds, for "ErrorName: message | line of code" or what came instead of a tensor."""
    for fault in FAULTS:
        if (not fault.parts or part in fault.parts) and re.search(fault.pattern, words, re.DOTALL):
            return Diagnosis((fault.name,), fault.where, fault.what)
    return None

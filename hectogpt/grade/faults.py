"""Mistakes that show as an error or as a result that is no tensor: a rule for each, tried in order."""

# ruff: noqa: E501  # a table, an entry a line
from __future__ import annotations

import re
from dataclasses import dataclass


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
    Fault("nothing returned", r"^result: None", "the end of the function", "The result is computed but nothing is returned: the return is missing."),
    Fault("changed in place", r"modified by an inplace operation|leaf Variable that requires grad", "a sum or mask in place",
          "A tensor that the gradient needs is changed in place, by += say: backward fails. A new tensor is asked for."),
    Fault("a helper returns nothing", r"not NoneType|'NoneType' (object|and)|got NoneType|NoneType: None", "a helper function",
          "A function of yours that is called here computes its result but does not return it: the return is missing."),
    Fault("exception raised for return", r"exceptions must derive from BaseException", "the end of the function",
          "The result is raised as an exception: `raise` stands where `return` belongs."),
    Fault("several values returned", r"^result: a (tuple|list)", "the end of the function", "Several values are returned; one tensor is asked for."),
    Fault("layers outside a ModuleList", r"LookupError: parameters differ.*missing: backbone\.0\.mlp\.fc1\.weight", "the constructor of Transformer",
          "The blocks are not registered: a plain list hides their parameters from PyTorch."),
    Fault("bias missing in a layer", r"LookupError: parameters differ.*missing: [\w., ]*bias(?!.*missing: [\w., ]*weight)", "the constructor",
          "A linear layer has been made without its bias."),
    Fault("d_ff is not 4 d_model", r"LookupError: parameters differ.*fc[12]\.", "the constructor of MLP",
          "The hidden layer of the MLP has to be 4 d_model wide."),
    Fault("parameters of one head's width", r"LookupError: parameters differ.*W_[kqvo]\.\w+: \[", "the constructor of CausalAttention",
          "A projection has another shape than (d_model, d_model); all heads share one matrix."),
    Fault("parameters renamed", r"LookupError: parameters differ", "the constructor", "Names or shapes of parameters are not the assignment's."),
    Fault("nn.Softmax given the scores", r"TypeError: .*Softmax.*|TypeError: .*'dim'.*\| .*Softmax\(|RuntimeError: .*ambiguous.*\| .*Softmax\(", "the softmax",
          "nn.Softmax is a class: it is built with its axis first, then called with the scores.", ("attention",)),
    Fault("shape called", r"'torch.Size' object is not callable", "reading a shape", "`shape` is an attribute; it is not called."),
    Fault("n_heads not stored", r"AttributeError: .*has no attribute '(n_heads|num_heads|n_head|num_attention_heads|d_head|head_dim)'", "the attributes of the module",
          "The module has no such attribute: only what its constructor stores is there (the head's width is, and d_model with it)."),
    Fault("attribute missing", r"AttributeError: .*has no attribute", "the attributes of a module", "An attribute is used that nothing has set."),
    Fault("name not defined", r"NameError|UnboundLocalError", "a name", "A name is used that is not defined there."),
    Fault("extra required argument", r"missing \d+ required positional argument", "the arguments",
          "A function asks for an argument that its caller does not give; extra arguments need a default."),
    Fault("positions not in the table", r"IndexError: index out of range", "the position embeddings", "A table is asked for a row that it does not have.", ("forward",)),
    Fault("context overrun", r"IndexError: index out of range|do not fit a context|must match the size of tensor", "what the model is given at each step",
          "The model is given more tokens than its context holds.", ("generate",)),
    Fault("mask not sliced", r"RuntimeError: The size of tensor a \(\d+\) must match the size of tensor b \(10|7\)", "the causal mask",
          "The mask is not cut to the length of the input: only inputs as long as the context work.", ("attention",)),
    Fault("heads not joined before W_o", r"mat1 and mat2 shapes cannot be multiplied.*\| .*W_o", "joining the heads",
          "What reaches W_o does not have d_model numbers at each position: the heads are not put side by side.", ("attention",)),
    Fault("mask of another shape", r"must match the size of tensor.*\| .*mask", "the causal mask",
          "The mask and the scores have different shapes: the mask has to be cut to (T, T).", ("attention",)),
    Fault("view of a transposed tensor", r"view size is not compatible", "a change of shape",
          "A transposed or sliced tensor cannot be viewed in another shape: it has to be made contiguous, or reshaped."),
    Fault("the new token lacks an axis", r"same number of dimensions|Sizes of tensors must match", "appending the new token",
          "The new tokens have another number of axes than the text: one token a row makes a column.", ("generate",)),
    Fault("position embeddings of another shape", r"must match the size of tensor.*\| .*pos", "the position embeddings",
          "Token and position embeddings have different lengths: positions are counted along the sequence.", ("forward",)),
    Fault("no axis given", r"Implicit dimension choice", "the softmax", "The softmax has no axis: it has to run over the keys.", ("attention",)),
    Fault("shapes do not fit in a product", r"mat1 and mat2 shapes|Expected size for first two dimensions|must match the size of tensor|shape .* is invalid|einsum|Shape mismatch|EinopsError", "shapes",
          "The shapes of two tensors do not fit together."),
    Fault("cross entropy over the wrong axis", r"Expected target size|Expected input batch_size|Expected target", "the shapes given to cross entropy",
          "Cross entropy wants the classes on the second axis: logits and targets have to be flattened alike, or transposed.", ("loss",)),
    Fault("index out of range", r"IndexError", "an index", "An index is larger than the axis it is used on."),
    Fault("endless recursion", r"RecursionError", "a call", "A function calls itself without end."),
    Fault("exit called", r"^SystemExit|SystemExit:", "a call of exit", "The code ends the program."),
    Fault("something that needs the network", r"OfflineError:|no network while grading", "a download", "The code uses something that has to be downloaded."),
    Fault("device", r"Torch not compiled with CUDA|No CUDA GPUs|Found no NVIDIA|different devices|same device", "the device of a tensor",
          "A tensor is made on a fixed device; it has to be on that of the input."),
    Fault("dtype", r"expected scalar type|same dtype|must have the same dtype|Expected tensor for argument .* scalar types", "the dtype of a tensor", "Two tensors have different dtypes."),
)  # fmt: skip


def explain(part: str, told: str) -> Fault | None:
    """The first rule that holds."""
    for fault in FAULTS:
        if (not fault.parts or part in fault.parts) and re.search(fault.pattern, told, re.DOTALL):
            return fault
    return None

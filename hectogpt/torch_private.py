"""Private names of torch, each with a fallback. No other module uses any.

A private name may disappear in any version of torch. Every function here looks up its name when it
is called. If the name is missing, the function does the same work more slowly with public
functions. tests/laws/test_torch_private.py tries both ways.
"""

from __future__ import annotations

import sys
from typing import Any

TORCH = ((2, 13), (2, 15))
PYTHON = ((3, 11), (3, 14))  # oldest and newest that are tested, as in constraints/


def find(name: str) -> Any:
    """Look up a dotted name in torch. Returns None if it does not exist.

    `onednn_has_bf16` interprets None as "not supported".
    """
    import torch

    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def untested() -> str:
    """The versions in use that are not tested: "not tested with torch 2.16.0", or ""."""
    import torch

    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    odd = [] if TORCH[0] <= found <= TORCH[1] else [f"torch {torch.__version__}"]
    odd += (
        []
        if PYTHON[0] <= sys.version_info[:2] <= PYTHON[1]
        else [f"Python {sys.version.split()[0]}"]
    )
    return f"not tested with {' and '.join(odd)}" if odd else ""


def onednn_has_bf16() -> bool:
    """True if this CPU supports oneDNN's bf16 products (on x86 from AVX-512 on).

    Without support they raise an error.
    """
    import torch

    ask = find("ops.mkldnn._is_mkldnn_bf16_supported")
    return torch.backends.mkldnn.is_available() and ask is not None and bool(ask())


def onednn_linear(x: Any, weight: Any) -> Any:
    """x [*, in] times the transpose of weight [out, in], computed by oneDNN.

    `weight` is a plain tensor or comes from `onednn_blocks`.
    """
    from torch.nn.functional import linear

    product = find("ops.mkldnn._linear_pointwise")
    return linear(x, weight) if product is None else product(x, weight, None, "none", [], "")


def onednn_blocks(weight: Any, rows: int) -> Any:
    """weight [out, in] in the layout that `onednn_linear` reads for products with `rows` rows."""
    reorder = find("ops.mkldnn._reorder_linear_weight")
    return (
        weight
        if reorder is None or find("ops.mkldnn._linear_pointwise") is None
        else reorder(weight, rows)
    )


def softmax_(z: Any) -> Any:
    """Replace each row of z [rows, n] with its softmax, and return z."""
    import torch

    softmax = find("_softmax")
    return z.copy_(torch.softmax(z, 1)) if softmax is None else softmax(z, 1, False, out=z)


def sum_rows(gradient: Any) -> tuple[Any, Any]:
    """Add up the rows with the same number in the gradient of a sparse nn.Embedding.

    Returns the numbers, in ascending order, and the sums. Each row's terms are added in
    the order of its tokens, so the sum is bit for bit that of a dense gradient; `coalesce` adds
    them in a different order.
    """
    ids = find("Tensor._indices")
    values = find("Tensor._values")
    if not (ids and values):
        added = gradient.coalesce()
        return added.indices()[0], added.values()
    rows, places = ids(gradient)[0].unique(return_inverse=True)
    terms = values(gradient)
    return rows, terms.new_zeros(len(rows), terms.shape[1]).index_add_(0, places, terms)


def adamw_(p: Any, gradient: Any, average: Any, square: Any, count: Any, **s: float) -> None:
    """Take a step of AdamW in place.

    Args:
        p, gradient, average, square: the parameter, its gradient, and the averages of the gradient
            and of its square, all of the same shape.
        count: the tensor that counts the steps.
        s: lr, beta1, beta2, weight_decay, eps.
    """
    count += 1
    step = find("_fused_adamw_")
    if step is not None:
        lists = ([t] for t in (p, gradient, average, square))
        step(*lists, [], [count], amsgrad=False, maximize=False, **s)
        return
    p.mul_(1 - s["lr"] * s["weight_decay"])
    average.lerp_(gradient, 1 - s["beta1"])
    square.mul_(s["beta2"]).addcmul_(gradient, gradient, value=1 - s["beta2"])
    size = (square.sqrt() / (1 - s["beta2"] ** count) ** 0.5).add_(s["eps"])
    p.sub_(s["lr"] / (1 - s["beta1"] ** count) * average / size)

"""Private names of torch, each with a fallback; no other module uses any.

A private name may disappear in any version of torch. Every function here looks up its name when it
is called, and otherwise does the same work with public functions, more slowly.
tests/laws/test_torch_private.py tries both.
"""

from __future__ import annotations

import sys
from typing import Any

TORCH = ((2, 13), (2, 15))
PYTHON = ((3, 11), (3, 14))  # oldest and newest that are tested, as in constraints/


def find(name: str) -> Any:
    """Look up a dotted name in torch; None if it does not exist.

    `onednn_has_bf16` takes None for "no".
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
    """x [*, in] times the transpose of weight [out, in], by oneDNN.

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
    """Replace each row of z [rows, n] by its softmax and return z."""
    import torch

    softmax = find("_softmax")
    return z.copy_(torch.softmax(z, 1)) if softmax is None else softmax(z, 1, False, out=z)


def adamw_(
    parameters: list[Any],
    gradients: list[Any],
    averages: list[Any],
    squares: list[Any],
    steps: list[Any],
    **s: float,
) -> None:
    """Take a step of AdamW in place.

    Args:
        parameters, gradients, averages, squares: lists of equal length.
        steps: the tensors that count the steps.
        s: lr, beta1, beta2, weight_decay, eps.
    """
    add = find("_foreach_add_")
    step = find("_fused_adamw_")
    if add is not None and step is not None:
        add(steps, 1)
        step(
            parameters, gradients, averages, squares, [], steps, amsgrad=False, maximize=False, **s
        )
        return
    for p, g, average, square, count in zip(
        parameters, gradients, averages, squares, steps, strict=True
    ):
        count += 1
        p.mul_(1 - s["lr"] * s["weight_decay"])
        average.lerp_(g, 1 - s["beta1"])
        square.mul_(s["beta2"]).addcmul_(g, g, value=1 - s["beta2"])
        size = (square.sqrt() / (1 - s["beta2"] ** count) ** 0.5).add_(s["eps"])
        p.sub_(s["lr"] / (1 - s["beta1"] ** count) * average / size)

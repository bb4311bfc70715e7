"""The parts of the assignment: their names, order, points, and the functions that each asks for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part to fill in.

    name: as in `--parts`, in the marks of reference/ and in the name of its test file. title: how it is shown.
    file: where it is. functions: what is to be written, by qualified name. points: 0 for what the course's own starter
    hands out complete. question: its number in the assignment, "" for what the assignment does not ask.
    """

    name: str
    title: str
    file: str
    functions: tuple[str, ...]
    points: int = 0
    question: str = ""


PARTS: tuple[Part, ...] = (
    Part("gelu", "GELU", "model_solution.py", ("GELU.forward",)),
    Part("mlp", "MLP", "model_solution.py", ("MLP.forward",), 1, "3(a)ii"),
    Part("attention", "CausalAttention", "model_solution.py", ("CausalAttention.forward",), 6, "3(a)iii"),
    Part("block", "DecoderBlock", "model_solution.py", ("DecoderBlock.forward",), 2, "3(a)iv"),
    Part("init", "Transformer._init_weights", "model_solution.py", ("Transformer._init_weights",)),
    Part("forward", "Transformer.forward", "model_solution.py", ("Transformer.forward",), 6, "3(a)v"),
    Part("generate", "Transformer.generate", "model_solution.py", ("Transformer.generate",), 5, "3(a)vi"),
    Part("loss", "Transformer.get_loss_on_batch", "model_solution.py", ("Transformer.get_loss_on_batch",), 7, "3(b)ii"),
    Part("converter", "state_dict_converter", "utils.py", ("switch_backbone_key", "state_dict_converter")),
    Part("pretrained", "Transformer.from_pretrained", "model_solution.py", ("Transformer.from_pretrained",)),
    Part("chunks", "get_chunked_tinystories", "train.py", ("get_chunked_tinystories",)),
    Part("train", "train", "train.py", ("train",), 3, "3(b)iii"),
    Part("plot", "plot_results", "train.py", ("plot_results",)),
)
BY_NAME: dict[str, Part] = {part.name: part for part in PARTS}

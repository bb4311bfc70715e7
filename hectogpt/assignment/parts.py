"""The parts of the assignment: names, order, points, functions, and what each rests on. For the
kit and the grader."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = ("model_solution.py", "train.py", "utils.py")


@dataclass(frozen=True)
class Part:
    """One part to fill in.

    name: as in `--parts`, in the marks of reference/ and in the name of its test file. title: how
        it is shown.
    file: where it is. functions: what is to be written, by qualified name. points: 0 for what the
        course's own starter
    hands out complete. question: its number in the assignment, "" for what the assignment does not
        ask.
    prefix: how the names of its weights begin in a model's state dict. rests_on: parts that it
        cannot be built without.
    axes: names of its result's axes.
    """

    name: str
    title: str
    file: str
    functions: tuple[str, ...]
    points: int = 0
    question: str = ""
    prefix: str = ""
    rests_on: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The name under which its file is imported."""
        return self.file.removesuffix(".py")

    @property
    def owner(self) -> str:
        """The class that its function belongs to, "" for a plain function."""
        return self.functions[-1].rpartition(".")[0]


M = "model_solution.py"
BLOCKS = ("block", "mlp", "attention")
CHANNELS = ("row", "position", "channel")
PARTS: tuple[Part, ...] = (
    Part("gelu", "GELU", M, ("GELU.forward",), axes=CHANNELS),
    Part("mlp", "MLP", M, ("MLP.forward",), 1, "3(a)ii", "backbone.0.mlp.", ("gelu",), CHANNELS),
    Part(
        "attention",
        "CausalAttention",
        M,
        ("CausalAttention.forward",),
        6,
        "3(a)iii",
        "backbone.0.attention.",
        (),
        CHANNELS,
    ),
    Part(
        "block",
        "DecoderBlock",
        M,
        ("DecoderBlock.forward",),
        2,
        "3(a)iv",
        "backbone.0.",
        BLOCKS[1:],
        CHANNELS,
    ),
    Part("init", "Transformer._init_weights", M, ("Transformer._init_weights",)),
    Part(
        "forward",
        "Transformer.forward",
        M,
        ("Transformer.forward",),
        6,
        "3(a)v",
        "",
        BLOCKS,
        ("row", "position", "token"),
    ),
    Part(
        "generate",
        "Transformer.generate",
        M,
        ("Transformer.generate",),
        5,
        "3(a)vi",
        "",
        BLOCKS,
        ("row", "position"),
    ),
    Part(
        "loss",
        "Transformer.get_loss_on_batch",
        M,
        ("Transformer.get_loss_on_batch",),
        7,
        "3(b)ii",
        "",
        BLOCKS,
    ),
    Part(
        "converter",
        "state_dict_converter",
        "utils.py",
        ("switch_backbone_key", "state_dict_converter"),
    ),
    Part("pretrained", "Transformer.from_pretrained", M, ("Transformer.from_pretrained",)),
    Part("chunks", "get_chunked_tinystories", "train.py", ("get_chunked_tinystories",)),
    Part("train", "train", "train.py", ("train",), 3, "3(b)iii"),
    Part("plot", "plot_results", "train.py", ("plot_results",)),
)
BY_NAME: dict[str, Part] = {part.name: part for part in PARTS}

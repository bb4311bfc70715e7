"""What docs/scale.md assumes of GPUs, links and models, and how long a step takes on many of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

VOCABULARY = 50_257
TOKENS = 10**12  # to train on
NODE = 8  # GPUs that NVLink joins


@dataclass(frozen=True)
class Assumption:
    """A number that is not computed here, and where it is from."""

    value: float
    shown: str
    source: str


H100 = "NVIDIA, H100 data sheet (SXM)"
ASSUMPTIONS = {
    "peak of a GPU, bf16 products": Assumption(989e12, "989 TFLOP/s", H100),
    "share of the peak that training reaches": Assumption(
        0.4, "40 %", "Llama 3 on 8,192 to 16,384 H100: 38 to 43 % (arXiv:2407.21783, table 4)"
    ),
    "memory of a GPU": Assumption(80e9, "80 GB", H100),
    "share of it that may be filled": Assumption(0.9, "90 %", "assumed: libraries and fragments take the rest"),
    "NVLink within a node of 8, each way": Assumption(450e9, "450 GB/s a GPU", H100 + ": 900 GB/s both ways"),
    "network between nodes, each way": Assumption(
        50e9, "50 GB/s a GPU", "NVIDIA, DGX H100 data sheet: a 400 Gb/s port for each GPU"
    ),
    "share of a link's peak that messages reach": Assumption(0.8, "80 %", "assumed"),
    "latency of a round of messages": Assumption(10e-6, "10 µs", "assumed"),
    "cost of a message at its sender": Assumption(1e-6, "1 µs", "assumed"),
}
VALUE = {name: assumption.value for name, assumption in ASSUMPTIONS.items()}
FLOPS = VALUE["peak of a GPU, bf16 products"] * VALUE["share of the peak that training reaches"]
MEMORY = VALUE["memory of a GPU"] * VALUE["share of it that may be filled"]
REACHED = VALUE["share of a link's peak that messages reach"]
NVLINK = REACHED * VALUE["NVLink within a node of 8, each way"]
NETWORK = REACHED * VALUE["network between nodes, each way"]


@dataclass(frozen=True)
class Shape:
    """A GPT-2 style model (tied embeddings) and the tokens of its step."""

    name: str
    d: int
    layers: int
    context: int
    batch: int

    @property
    def parameters(self) -> int:
        """Two tables, per block 12 d^2 weights and 13 d biases and norms, the last norm."""
        return (VOCABULARY + self.context) * self.d + self.layers * (12 * self.d**2 + 13 * self.d) + 2 * self.d

    @property
    def flops(self) -> int:
        """Of a token, both passes: 6 for each weight, 12 L d T for attention (arXiv:2204.02311, appendix B)."""
        return 6 * self.parameters + 12 * self.layers * self.d * self.context

    @property
    def states(self) -> int:
        """Bytes of weights, gradients and two moments of AdamW in float32."""
        return 16 * self.parameters

    @property
    def block(self) -> int:
        """Bytes of one block's weights in float32, as FSDP2 gathers them here."""
        return 4 * 12 * self.d**2

    def activations(self, kept: bool) -> float:
        """Bytes that the backward pass needs of one sequence: 34 d a token and layer with attention that keeps no
        scores; if they are computed again, each layer's input and one layer's own (arXiv:2205.05198, section 4)."""
        layer = 34 * self.context * self.d
        return self.layers * layer if kept else self.layers * 2 * self.context * self.d + layer

    def head(self, rows: int) -> int:
        """Bytes that the fused head takes for so many rows at a time: the weight and a partial gradient in bf16, the
        gradient in float32 as the products give it and as the optimizer wants it, and the logits in bf16."""
        return VOCABULARY * (self.d * (2 + 2 + 4 + 4) + 2 * rows)


SHAPES = (
    Shape("124 M", 768, 12, 1024, 2**19),
    Shape("1.5 B", 1600, 48, 1024, 2**20),
    Shape("70 B", 8192, 86, 4096, 2**22),
)
MEASURED = Shape("45 M", 512, 6, 512, 16 * 512)  # whose processes' memory is measured on one machine
SEQUENCES = 2  # that they compute at a time
LEAVES = 8
# Bytes that a GPU sends in a step for each parameter, of many GPUs. DDP: float32 gradients twice, for their sum. FSDP2
# as hectoGPT has it: float32 weights before the forward and the backward pass, float32 gradients once. FSDP2 that casts
# before it gathers, as torchtitan's does: bf16 weights twice, float32 gradients once.
SENDS = {"DDP": 8, "FSDP2": 12, "FSDP2, gathering bf16": 8}


def bandwidth(gpus: int) -> float:
    """Of the slowest link between so many GPUs."""
    return NVLINK if gpus <= NODE else NETWORK


def fits(shape: Shape, shards: int) -> bool:
    """Whether a GPU holds its share of the states, two gathered blocks (none without shards), and a sequence."""
    gathered = 2 * shape.block if shards > 1 else 0
    return shape.states / shards + gathered + shape.activations(False) <= MEMORY


def process_memory(how: str, processes: int) -> tuple[float, float, float]:
    """Bytes of a process that trains MEASURED by "none", "ddp" or "fsdp": the states and activations, as `fits` has
    them; the head's; and what sharing adds. ddp: sums of subtrees of leaves that wait for their neighbours, and the
    other processes' parts of the largest bucket. fsdp: the tables, which are gathered for the whole step."""
    shape, shards = MEASURED, processes if how == "fsdp" else 1
    gathered = 2 * shape.block if shards > 1 else 0
    plan = shape.states / shards + gathered + SEQUENCES * shape.activations(True)
    shared = 0.0
    if how == "ddp":
        table = 4 * VOCABULARY * shape.d
        shared = 4 * shape.parameters * log2(LEAVES / processes) + table * (processes - 1) / processes
    elif how == "fsdp":
        shared = 4.0 * (VOCABULARY + shape.context) * shape.d
    return plan, float(shape.head(SEQUENCES * (shape.context - 1))), shared


@dataclass(frozen=True)
class Plan:
    """How a number of GPUs shares a step. tensor: GPUs that share each matrix product. seconds: of computing, of
    sending gradients and weights (at the same time), and of tensor parallelism (in between)."""

    method: str
    tensor: int
    compute: float
    send: float
    exchange: float

    @property
    def step(self) -> float:
        return max(self.compute, self.send) + self.exchange

    @property
    def busy(self) -> float:
        """Share of the step in which the GPU computes."""
        return self.compute / self.step


def plan(shape: Shape, gpus: int, tensor: int, batch: int) -> Plan | None:
    """The step of `batch` tokens on so many GPUs; None if it does not fit or if there are fewer sequences than groups.

    With `tensor` GPUs to a group a GPU sends a share of the gradients and weights; for each token of its group, layer
    and pass (two forward, two backward) it sends 2 (t - 1) / t times d bf16 numbers (arXiv:1909.08053, section 3).
    """
    groups = gpus // tensor
    ddp = tensor == 1 and fits(shape, 1)
    if batch // shape.context < groups or not (ddp or fits(shape, gpus)):
        return None
    kind = "FSDP2, gathering bf16" if tensor > 1 else "DDP" if ddp else "FSDP2"
    share = SENDS[kind] * shape.parameters / tensor * (groups - 1) / groups
    passes = 4 * shape.layers * shape.d * 2 * 2 * (tensor - 1) / tensor * (batch / groups)
    return Plan(
        "one GPU" if gpus == 1 else kind if tensor == 1 else f"FSDP2 x tensor {tensor}",
        tensor,
        compute=batch * shape.flops / gpus / FLOPS,
        send=share / bandwidth(gpus),
        exchange=passes / NVLINK,
    )


def best_plan(shape: Shape, gpus: int, batch: int) -> Plan | None:
    """The plan with the fewest GPUs to a group whose step is at most a quarter longer than that of the quickest."""
    found = [p for t in (1, 2, 4, 8) if gpus % t == 0 and (p := plan(shape, gpus, t, batch)) is not None]
    quickest = min((p.step for p in found), default=0.0)
    return next((p for p in found if p.step <= 1.25 * quickest), None)

"""The stubs of a kit: exercises in the textbook's files are found by their marks, and replaced by what a student reads.

A mark is a comment line `# exercise: PART` inside a function. The exercise is what follows it, to the end of the
function; so the files that a student gets are made from the textbook's own and cannot differ from it elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from hectogpt.assignment.parts import BY_NAME

MARK = re.compile(r"(?P<indent> +)# exercise: (?P<part>\w+)")
FUNCTION = re.compile(r" *def (\w+)\(")

# (part, function) -> the lines of a comment: shapes, equation, what to return.
STUBS: dict[tuple[str, str], str] = {
    ("gelu", "forward"): """
x: any shape. Return a tensor of the same shape:
    gelu(x) = 0.5 x (1 + tanh( sqrt(2 / pi) (x + 0.044715 x^3) ))
This is the tanh form. The form by erf, torch's default, is another function.
""",
    ("mlp", "forward"): """
x:       [batch, seq, d_model]
fc1:     d_model -> 4 d_model, then gelu:  [batch, seq, 4 d_model]
fc2:     4 d_model -> d_model
Return   [batch, seq, d_model]:   mlp(x) = fc2(gelu(fc1(x)))        (2)
""",
    ("attention", "forward"): """
x:        [batch, seq, d_model]; seq may be smaller than context_length
q, k, v:  [batch, n_heads, seq, d_attention]; head 0 owns the first d_attention columns, and so on     (3)
score:    [batch, n_heads, seq (query), seq (key)] = q . k / sqrt(d_attention)                         (4)
pattern:  the same shape = softmax over the keys of score + causal_mask, cut to [seq, seq]             (5)
z:        [batch, n_heads, seq, d_attention] = sum over the keys of pattern * v                        (6)
Return    [batch, seq, d_model] = W_o (heads side by side, in the order in which they were cut)        (7)
causal_mask is 0 where a query may look and -inf where it may not. It is added, before the softmax.
""",
    ("block", "forward"): """
x:       [batch, seq, d_model], the residual stream
    x <- x + attention(pre_layer_norm(x))          (9)
    x <- x + mlp(post_layer_norm(x))               (10)
Return   [batch, seq, d_model]. Leave the caller's x as it is: no += on it.
""",
    ("init", "_init_weights"): """
Change every parameter of self in place and return nothing:
    weights of Linear and Embedding   N(0, INIT_STD)                                                    (11)
    but W_o and fc2 of every block    N(0, INIT_STD / sqrt(2 n_layers)), unless scale_residual is False
    biases 0;   LayerNorm: weight 1, bias 0
The test looks at the numbers, not at the order in which they are drawn.
""",
    ("forward", "forward"): """
x:       [batch, seq], token ids; seq <= context_length (seq and context are given above)
h:       [batch, seq, d_model] = embeddings of the tokens + position_embeddings of positions 0 .. seq - 1
         through the blocks of self.backbone, one after the other
Return   [batch, seq, vocab_size] = lm_head(final_layer_norm(h)): logits, no softmax              (12)
Make the positions on the device of x.
""",
    ("generate", "generate"): """
x:       [batch, seq], token ids, seq >= 1
num_new_tokens times: call self on the last context_length tokens; take the logits at the last position,
         [batch, vocab_size]; append each row's own argmax to it                                       (13)
Return   [batch, seq + num_new_tokens], token ids: the whole prompt, then the new tokens.
Leave the caller's x as it is.
""",
    ("loss", "get_loss_on_batch"): """
input_ids: [batch, seq], token ids, seq >= 2
logits:    [batch, seq - 1, vocab_size], from self, at positions 0 .. seq - 2
targets:   [batch, seq - 1], the tokens at positions 1 .. seq - 1
Return     a scalar that can be differentiated, the mean over all batch * (seq - 1) predictions of
           - log softmax(logits[t - 1])[ x_t ]                                                    (14)
torch.nn.functional.cross_entropy takes logits, [n, vocab_size], and targets, [n].
""",
    ("pretrained", "from_pretrained"): """
theirs = GPT2LMHeadModel.from_pretrained(name_or_folder), a model with `config` and `state_dict()`.
Its config has n_embd, n_head, n_layer, n_positions, vocab_size: ModelConfig's five fields, in this order.
Raise ValueError unless activation_function is "gelu_new", layer_norm_epsilon is LAYER_NORM_EPS,
scale_attn_weights is True and scale_attn_by_inverse_layer_idx is False: other models compute something else.
Return a model of class cls with that ModelConfig, into which state_dict_converter's result is loaded.
""",
    ("converter", "switch_backbone_key"): """
key:     "[transformer.]h.N.PART.weight" or ".bias";  value: the tensor of that name
Return   a dict from our names to tensors, by the table at the top of this file and BACKBONE_NAMES:
    one entry for most names;
    three for attn.c_attn: its last axis, 3 d, holds query, key and value, in this order;
    none, {}, for the masks attn.bias and attn.masked_bias.
The weights of attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj are stored (in, out); nn.Linear stores
(out, in): transpose them. Raise KeyError for a part that GPT-2 does not have.
""",
    ("converter", "state_dict_converter"): """
state_dict: names of Hugging Face, with or without "transformer." in front, to tensors
Return      a dict of our names: switch_backbone_key for those of a block (h.N. ...), OUTER_NAMES for the others.
            Without lm_head.weight in the input, it is a copy of embeddings.weight.
Raise KeyError for a name that GPT-2 does not have.
""",
    ("chunks", "get_chunked_tinystories"): """
tokens:  a numpy array, [num_tokens], of uint16
Return   a torch tensor, [num_tokens // chunk_size, chunk_size], of int64: the stream in order, cut into
         chunks that do not overlap; what is left over at the end is dropped.
Raise ValueError if there is not even one chunk.
""",
    ("train", "train"): """
Given above: model and device; chunks [num_chunks, context_length]; order, an iterator over chunk numbers.
optimizer: AdamW with PyTorch's defaults and lr = learning_rate.
max_steps times:
    batch [batch_size, context_length], on the device: the chunks of the next batch_size numbers of order
    loss = model.get_loss_on_batch(batch); set old gradients to zero; backward
    grad_norm, a number: the norm of all gradients taken as one vector, before clipping; where it exceeds
    gradient_clipping (unless that is None), scale all gradients down to it. torch.nn.utils.clip_grad_norm_
    does this, and returns the norm.
    optimizer step
Return (losses, grad_norms): two lists of max_steps floats, each of its step.
Not tested: log, and FloatingPointError. A progress bar is pleasant: tqdm(range(max_steps)).
""",
    ("plot", "plot_results"): """
losses, grad_norms: lists of equal length, a number per step
Write one picture, a PNG, to save_path: two panels side by side, each with a title and named axes. The first
shows the losses, the second the gradient norms, each as a line over the steps.
Figure(figsize=(11, 4)).subplots(1, 2) makes two axes; figure.savefig(save_path) writes. Open no window, and
leave no figure open.
""",
}


@dataclass(frozen=True)
class Exercise:
    """One marked region: lines [start, stop) of the file, the mark among them."""

    part: str
    function: str
    indent: str
    start: int
    stop: int


def find_exercises(source: str) -> list[Exercise]:
    """The exercises of a file, in order. Raises ValueError for a mark of an unknown part or outside a function."""
    lines = source.splitlines()
    found = []
    for start, line in enumerate(lines):
        mark = MARK.fullmatch(line)
        if mark is None:
            continue
        part, indent = mark["part"], mark["indent"]
        names = [name[1] for name in map(FUNCTION.match, lines[:start]) if name]
        if not names or (part, names[-1]) not in STUBS:
            raise ValueError(f"line {start + 1}: no stub for exercise {part!r} here")
        stop = start + 1
        while stop < len(lines) and (not lines[stop].strip() or lines[stop].startswith(indent)):
            stop += 1
        while not lines[stop - 1].strip():
            stop -= 1
        found.append(Exercise(part, names[-1], indent, start, stop))
    return found


def with_stubs(source: str, parts: Collection[str]) -> str:
    """The file with the exercises of these parts left out; the others are given, without their marks."""
    lines, exercises = source.splitlines(), find_exercises(source)
    for exercise in reversed(exercises):
        if exercise.part in parts:
            lines[exercise.start : exercise.stop] = stub(exercise)
        else:
            del lines[exercise.start]
    names = list(dict.fromkeys(exercise.part for exercise in exercises if exercise.part in parts))
    title = [f"# EXERCISES in this file: {', '.join(names)}", ""] if names else []
    return "\n".join([*title, *lines, ""])


def stub(exercise: Exercise) -> list[str]:
    """The lines that stand in place of an exercise: what to write, and an error until it is written."""
    part = BY_NAME[exercise.part]
    points = f", {part.points} point{'s' if part.points != 1 else ''}" if part.points else ""
    question = f" ({part.question}{points})" if part.question else ""
    text = [f"EXERCISE {part.name}{question}. Its test: pytest tests/test_{part.name}.py"]
    text += STUBS[exercise.part, exercise.function].strip("\n").splitlines()
    comment = [f"{exercise.indent}# {line}".rstrip() for line in text]
    return [
        *comment,
        f'{exercise.indent}raise NotImplementedError("exercise {part.name}: {exercise.function} is not written yet")',
    ]

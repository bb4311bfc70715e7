"""Sources, splits, shards and batches: the same bytes every time, no document in two splits, no damage unnoticed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hectogpt import data, errors
from hectogpt.data import Batches, Corpus, load_tokenizer, open_corpus, shards, split
from hectogpt.data.text import decode
from hectogpt.errors import UserError

CHECKOUT = Path(__file__).resolve().parent.parent
TOK = load_tokenizer()
SPLITS = ("train", "dev", "test")
WORDS = ["the", "union", "of", "states", "has", "met", "debated", "peace,", "war", "&", "1790", "liberty;", "é", "😀"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def sotu(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_corpus("sotu", cache=tmp_path_factory.mktemp("sotu"))


def prose(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", " ", "\n", "\n\n"]) for _ in range(n_words))


def write_jsonl(path: Path, n: int, n_words: int = 12) -> list[str]:
    texts = [f"{i} {prose(i, n_words)}" for i in range(n)]
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    return texts


def documents(tokens: np.ndarray) -> list[bytes]:
    """The documents of a token stream, which must end with a separator."""
    assert tokens.dtype == np.uint16
    assert not tokens.flags.writeable
    ends = np.flatnonzero(tokens == 50_256)
    assert ends[-1] == len(tokens) - 1
    return [TOK.decode_bytes(part[part != 50_256]) for part in np.split(tokens, ends[:-1] + 1)]


def all_documents(corpus: Corpus) -> list[bytes]:
    return [d for name in SPLITS for d in documents(getattr(corpus, name))]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(source: str | Path, *fragments: str, code: int = errors.DATA, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        open_corpus(str(source), **options)  # type: ignore[arg-type]
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)
    assert caught.value.code == code
    assert caught.value.fix
    return caught.value


# Batches


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 50), st.integers(0, 2**63 - 1), st.data())
def test_batches_obey_the_law(n: int, window: int, batch_size: int, seed: int, draw: st.DataObject) -> None:
    """Against the law written out naively; any partition of the rows gives the same batch."""
    tokens = np.arange(n * window + draw.draw(st.integers(0, window - 1)), dtype=np.uint16)
    batches = Batches(tokens, window, batch_size, seed)
    assert batches.n_windows == n
    n_epochs = 3 * batch_size // n + 2
    orders = [np.argsort(np.random.Philox(key=[seed, e]).random_raw(n), kind="stable") for e in range(n_epochs)]
    whole = np.concatenate(orders)
    for step in (0, 2, 1):
        expected = [tokens[i * window : (i + 1) * window] for i in whole[step * batch_size : (step + 1) * batch_size]]
        batch = batches.at(step)
        assert batch.dtype == np.int64
        assert np.array_equal(batch, np.array(expected))
        cuts = sorted(draw.draw(st.lists(st.integers(0, batch_size), max_size=3)))
        parts = [batches.rows(step, lo, hi) for lo, hi in zip([0, *cuts], [*cuts, batch_size], strict=True)]
        assert np.array_equal(np.concatenate(parts), batch)
        assert batches.epoch(step) == step * batch_size // n


@pytest.mark.parametrize("batch_size", [1, 7, 16, 300])
def test_each_window_once_per_epoch(batch_size: int) -> None:
    batches = Batches(np.repeat(np.arange(100), 4), window=4, batch_size=batch_size, seed=3)
    rows = np.concatenate([batches.at(step)[:, 0] for step in range(600 // batch_size + 1)])
    for epoch in range(6):
        assert sorted(rows[epoch * 100 : (epoch + 1) * 100].tolist()) == list(range(100))
    assert rows[:100].tolist() != rows[100:200].tolist()


def test_order_is_the_same_for_ever() -> None:
    tokens = np.arange(24)
    assert Batches(tokens, 3, 2, seed=0).order(0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert Batches(tokens, 3, 2, seed=0).order(1).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert Batches(tokens, 2, 2, seed=7).order(3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1, 11, 10]


def test_too_short_for_a_window() -> None:
    with pytest.raises(UserError, match="7 tokens in this split, one window needs 65") as caught:
        Batches(np.arange(7), window=65)
    assert caught.value.code == errors.DATA
    for bad in ({"window": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**63}):
        with pytest.raises(UserError) as caught:
            Batches(np.arange(99), **{"window": 4, **bad})
        assert caught.value.code == errors.USAGE
    with pytest.raises(ValueError, match="rows 3:2"):
        Batches(np.arange(99), 4).rows(0, 3, 2)


# Sources and splits


def test_sotu(sotu: Corpus) -> None:
    assert sum(sotu.n_documents.values()) == 249
    assert sum(len(d) for d in all_documents(sotu)) == 12_185_751
    assert sum(len(getattr(sotu, name)) for name in SPLITS) == 2_388_908 + 249
    assert len(sotu.dev) > 100_000
    assert len(sotu.test) > 100_000
    assert sotu.n_vocab == 50_257
    for name in SPLITS:
        assert sotu.sha256[name] == hashlib.sha256(getattr(sotu, name).tobytes()).hexdigest()


def test_split_is_by_hash_in_order_and_disjoint(tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "many.jsonl", 3000)
    corpus = open_corpus(str(tmp_path / "many.jsonl"))
    expected: dict[str, list[bytes]] = {name: [] for name in SPLITS}
    for text in texts:
        u = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        expected["train" if u < 0.85 else "dev" if u < 0.925 else "test"].append(text.encode())
    for name in SPLITS:
        assert documents(getattr(corpus, name)) == expected[name]
        assert corpus.n_documents[name] == len(expected[name])
    assert corpus.n_documents["train"] / 3000 == pytest.approx(0.85, abs=0.02)
    assert corpus.n_documents["dev"] / 3000 == pytest.approx(0.075, abs=0.015)
    found = [set(expected[name]) for name in SPLITS]
    assert len(set.union(*found)) == sum(map(len, found))


def test_adding_documents_moves_none(tmp_path: Path) -> None:
    path = tmp_path / "grows.jsonl"
    write_jsonl(path, 200)
    before = {name: set(documents(getattr(open_corpus(str(path)), name))) for name in SPLITS}
    write_jsonl(path, 300)  # also: a changed source is noticed and tokenised again
    after = {name: set(documents(getattr(open_corpus(str(path)), name))) for name in SPLITS}
    assert all(before[name] < after[name] for name in SPLITS)


def test_folder_is_read_by_the_bytes_of_its_paths(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    names = ["b.txt", "a/z.txt", "a.txt", "B.md", "ä.txt", "a-b.txt", "sub/noending"]
    names += [f"n{i}.txt" for i in range(120)]
    shuffled = random.Random(1).sample(names, len(names))
    for name in shuffled:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}: {prose(len(name), 30)}", encoding="utf-8")
    (folder / ".hidden").write_bytes(b"\xff")
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n")
    (folder / "image").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to(folder / "nowhere")
    corpus = open_corpus(str(folder))
    for name in SPLITS:
        order = [d.split(b":")[0] for d in documents(getattr(corpus, name))]
        assert order == sorted(order)
    assert {d.split(b":")[0].decode() for d in all_documents(corpus)} == set(names)
    listed = " ".join(corpus.problems)
    assert all(word in listed for word in ("empty.txt", "blank.txt", "image", "broken"))
    assert ".hidden" not in listed
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 3)
    (folder / "utf16.txt").write_bytes("words".encode("utf-16"))
    refused(folder, "2 of", "latin.txt", "offset 0", "utf16.txt", "--force")
    assert len(all_documents(open_corpus(str(folder), force=True))) == len(names)


def test_one_book_is_cut_into_passages_and_keeps_its_bytes(tmp_path: Path) -> None:
    """CRLF, lone CR, byte order mark, U+2028 and the name of the separator are text like any other."""
    text = "\ufeff<|endoftext|>\r\n" + "\r\n\r\n".join(prose(i, 60) + "\rx\u2028\x0b" for i in range(300))
    (tmp_path / "book.txt").write_bytes(text.encode())
    corpus = open_corpus(str(tmp_path / "book.txt"))
    assert all(len(getattr(corpus, name)) > 200 for name in SPLITS)
    length = json.loads((corpus.folder / "index.json").read_bytes())["passages"]
    pieces = [piece.encode() for piece in split.passages(text, length)]
    assert b"".join(pieces) == text.encode()
    assert sorted(pieces) == sorted(all_documents(corpus))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab \n\r\t😀"), max_size=400), st.integers(1, 20))
def test_passages_join_to_the_text(text: str, length: int) -> None:
    pieces = list(split.passages(text, length))
    assert "".join(map(str, pieces)) == text
    assert all(length <= len(piece) <= 2 * length for piece in pieces[:-1])


def test_few_documents_with_an_empty_split_are_cut(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for i in range(2):
        (tmp_path / "two" / f"{i}.txt").write_text(prose(i, 8000), encoding="utf-8")
    assert all(n > 0 for n in open_corpus(str(tmp_path / "two")).n_documents.values())


def test_text_that_repeats_itself_is_dealt_by_number(tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("all work and no play\n" * 2000)
    corpus = open_corpus(str(tmp_path / "same.txt"))
    assert sum(map(len, all_documents(corpus))) == 42_000
    assert all(len(getattr(corpus, name)) > 100 for name in SPLITS)
    assert "repeats itself" in corpus.problems[0]


def write_bin(path: Path, docs: list[list[int]], last: bool = True) -> None:
    ids = [i for doc in docs for i in [*doc, 50_256]]
    np.array(ids if last else ids[:-1], dtype="<u2").tofile(path)


@pytest.mark.parametrize("last", [True, False])
def test_bin_is_split_by_the_hash_of_its_tokens(tmp_path: Path, last: bool) -> None:
    docs = [[i, i % 7, 3] for i in range(1, 800)]
    write_bin(tmp_path / "tokens.bin", docs, last)
    corpus = open_corpus(str(tmp_path / "tokens.bin"))
    expected: dict[str, list[int]] = {name: [] for name in SPLITS}
    for doc in docs:
        raw = np.array(doc, dtype="<u2").tobytes()
        u = int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") / 2**64
        expected["train" if u < 0.85 else "dev" if u < 0.925 else "test"] += [*doc, 50_256]
    assert all(getattr(corpus, name).tolist() == expected[name] for name in SPLITS)


def test_bin_without_separators_is_cut(tmp_path: Path) -> None:
    np.random.default_rng(0).integers(0, 50_256, 20_000).astype("<u2").tofile(tmp_path / "one.bin")
    assert all(n > 1 for n in open_corpus(str(tmp_path / "one.bin")).n_documents.values())


def test_given_splits_are_used_as_they_are(tmp_path: Path) -> None:
    for n, name in enumerate(SPLITS, start=1):
        write_bin(tmp_path / f"{name}.bin", [[n, n]] * n)
    for source in (tmp_path, tmp_path / "train.bin"):
        corpus = open_corpus(str(source))
        assert corpus.dev.tolist() == [2, 2, 50_256] * 2
        assert corpus.n_documents == {"train": 1, "dev": 2, "test": 3}
        assert corpus.sha256["test"] == hashlib.sha256((tmp_path / "test.bin").read_bytes()).hexdigest()
        assert data.verify(str(source)) == []
    assert not (tmp_path / "cache").exists()
    (tmp_path / "dev.bin").write_bytes(b"\x01")
    refused(tmp_path, "dev.bin", "1 bytes are no uint16 tokens")
    assert "dev.bin" in data.verify(str(tmp_path))[0]
    with pytest.raises(UserError, match="cannot repair"):
        data.repair(str(tmp_path))


def test_a_cache_folder_is_a_source_and_checked(tmp_path: Path, sotu: Corpus) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sotu.folder, copy)
    assert open_corpus(str(copy)).sha256 == sotu.sha256
    index = json.loads((copy / "index.json").read_bytes())
    index["tokenizer"]["sha256"] = "0" * 64
    del index["sha256"]
    (copy / "index.json").write_bytes(shards._rendered(index))
    refused(copy, "made with another vocabulary")


@pytest.mark.parametrize("record", ['{"text": "%s", "title": "t"}', '{"story": "%s", "n": 1}'])
def test_jsonl_finds_its_text(tmp_path: Path, record: str) -> None:
    lines = [record % f"words number {i}" for i in range(200)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, "", record % "  "]), encoding="utf-8")
    corpus = open_corpus(str(tmp_path / "x.jsonl"))
    assert sum(corpus.n_documents.values()) == 200
    assert "line 202: empty" in corpus.problems[0]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-32"])
def test_other_encodings_are_named_and_read_exactly(tmp_path: Path, encoding: str) -> None:
    text = "caf\xe9 \xfc\n" * 3000
    raw = text.encode(encoding)
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    refused(
        path, "is not utf-8 text", "offset", "line 1", f"--encoding {'latin-1' if encoding == 'cp1252' else encoding}"
    )
    assert decode(raw, "text", encoding, False).encode(encoding) == raw
    corpus = open_corpus(str(path), encoding=encoding)
    assert sum(len(d) for d in all_documents(corpus)) == len(text.encode())


BAD_FILES = {
    "empty": (b"", ("empty (0 bytes)",)),
    "blank": (b" \n\t\n", ("whitespace only (4 bytes)",)),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ("is binary", "PNG image at offset 0")),
    "elf": (b"\x7fELF\x02\x01\x01" + bytes(9), ("is binary", "ELF program")),
    "zip": (b"PK\x03\x04" + bytes(20), ("is binary", "zip archive")),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), ("is binary", "gzip archive")),
    "pdf": (b"%PDF-1.7 text", ("is binary", "PDF document")),
    "nul": (b"some text\0 and more", ("is binary", "NUL byte at offset 9", "--force")),
    "latin": (b"fine\nline \xe9t\xe9", ("0xe9 at offset 10 (line 2)", "--encoding latin-1")),
    "cut": ("€".encode()[:2], ("offset 0", "unexpected end of data")),
    "short": (b"a few words only", ("too short to be split", "at least 8,192 characters")),
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', ("line 2", "not a JSON record")),
    "b.jsonl": (b'{"a": "x", "b": "y"}\n', ("line 1", 'no field "text" and 2 fields')),
    "c.jsonl": (b'{"text": "ab\\ud800"}\n', ("line 1", "lone surrogate U+D800 at character 2")),
    "d.jsonl": (b'["x"]\n', ("line 1", "no field")),
    "e.jsonl": (b"[" * 100_000, ("line 1",)),
    "f.jsonl": (b'{"text": "\xe9"}', ("line 1", "UTF-8")),
    "g.jsonl": (b"\n\n", ("holds no text",)),
    "odd.bin": (b"\x01\x00\x02", ("3 bytes are no uint16 tokens",)),
    "none.bin": (b"", ("0 bytes",)),
    "range.bin": (np.array([5, 50_256, 60_000], "<u2").tobytes(), ("id 60000 at position 2", "50,257 ids")),
    "only-ends.bin": (np.full(9, 50_256, "<u2").tobytes(), ("holds no text",)),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, fragments = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, *fragments)
    assert not list((tmp_path / "cache").glob("*/"))


def test_bad_names_and_encodings(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    refused("sutu", "no such file or folder", "did you mean sotu?")
    refused(tmp_path / "stroy.txt", "did you mean", "story.txt")
    refused(tmp_path / "folder", "the folder is empty")
    refused("/dev/null", "neither a file nor a folder")
    refused("sotu", "unknown text encoding 'latin-one'", code=errors.USAGE, encoding="latin-one")
    refused("sotu", "unknown text encoding 'hex'", code=errors.USAGE, encoding="hex")


def test_force_takes_text_with_nuls(tmp_path: Path) -> None:
    text = prose(0, 5000).replace("union", "un\0ion")
    (tmp_path / "nuls.txt").write_text(text, encoding="utf-8")
    refused(tmp_path / "nuls.txt", "NUL byte")
    assert sum(map(len, all_documents(open_corpus(str(tmp_path / "nuls.txt"), force=True)))) == len(text.encode())


# Shards


def test_rebuilt_byte_for_byte_with_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    monkeypatch.setattr("hectogpt.data.corpus.TASK_CHARACTERS", 5000)
    write_jsonl(tmp_path / "x.jsonl", 2000)
    builds = []
    for workers in (1, 2, 1, 5):
        folder = data.build(str(tmp_path / "x.jsonl"), workers=workers)
        builds.append(files_of(folder))
    assert builds[0] == builds[1] == builds[2] == builds[3]
    assert set(builds[0]) == {"train.bin", "dev.bin", "test.bin", "index.json"}
    index = json.loads(builds[0]["index.json"])
    assert len(index["splits"]["train"]["shards"]) > 10
    assert sum(s["tokens"] for s in index["splits"]["train"]["shards"]) == len(builds[0]["train.bin"]) // 2


def test_mapped_equals_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "x.jsonl", 300)
    read = open_corpus(str(tmp_path / "x.jsonl"))
    monkeypatch.setattr(shards, "MEMORY_LIMIT", 1000)
    mapped = open_corpus(str(tmp_path / "x.jsonl"))
    assert isinstance(mapped.train, np.memmap)
    assert all(np.array_equal(getattr(read, name), getattr(mapped, name)) for name in SPLITS)
    assert np.array_equal(Batches(read.train, 64).at(3), Batches(mapped.train, 64).at(3))


def test_damaged_shards_are_named_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 4096)
    source = str(tmp_path / "x.jsonl")
    write_jsonl(tmp_path / "x.jsonl", 2000)
    folder = open_corpus(source).folder
    good = files_of(folder)
    rng = random.Random(0)
    for trial in range(40):
        path = folder / f"{rng.choice(SPLITS)}.bin"
        raw = bytearray(good[path.name])
        at = rng.randrange(len(raw))
        if trial % 4 == 0:
            raw[at] ^= 1 << rng.randrange(8)
            number = at // 2 // 4096
            fragments: tuple[str, ...] = (f"shard {number} (tokens {number * 4096:,} to ",)
        elif trial % 4 == 1:
            raw[at // 2 * 2 : at // 2 * 2 + 512] = b"\xff" * 512
            fragments = ("bytes" if len(raw) != len(good[path.name]) else "SHA-256 of shard",)
        elif trial % 4 == 2:
            del raw[at:]
            fragments = (f"{at:,} bytes",)
        else:
            raw += bytes(1 + at % 3)
            fragments = ("bytes, the index says",)
        path.write_bytes(raw)
        error = refused(source, "damaged", path.name, *fragments)
        assert error.fix == f"hectogpt data repair {source}"
        path.write_bytes(good[path.name])
    (folder / "dev.bin").unlink()
    refused(source, "dev.bin", "cannot be read")
    assert "dev.bin" in data.verify(source)[0]
    assert len(data.repair(source)) == 1
    assert files_of(folder) == good
    assert data.verify(source) == data.repair(source) == []


def test_every_change_of_the_index_is_noticed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", 200)
    folder = open_corpus(str(tmp_path / "x.jsonl")).folder
    good = (folder / "index.json").read_bytes()
    for at in range(0, len(good), 5):
        (folder / "index.json").write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
        with pytest.raises(UserError, match=r"index\.json"):
            shards.read_index(folder, "repair")
    for bad in (b"", b"[]", b"{}", b"null", good[:-1], good + b"\n", b"[" * 100_000):
        (folder / "index.json").write_bytes(bad)
        refused(tmp_path / "x.jsonl", "index.json", "hectogpt data repair")
    assert data.repair(str(tmp_path / "x.jsonl"))
    assert (folder / "index.json").read_bytes() == good


OPEN = "import sys; from hectogpt.data import open_corpus; print(open_corpus(sys.argv[1]).sha256['train'])"


def test_killed_while_building_leaves_nothing_half(tmp_path: Path) -> None:
    source = tmp_path / "big.jsonl"
    write_jsonl(source, 3000, n_words=300)
    cache = tmp_path / "cache"
    killed = 0
    for delay in (0.0, 0.03, 0.1):
        child = subprocess.Popen([sys.executable, "-c", OPEN, str(source)], cwd=CHECKOUT, stdout=subprocess.DEVNULL)
        while child.poll() is None and not list(cache.glob(".*.new-*")):
            time.sleep(0.002)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        assert all(
            sorted(files_of(done)) == sorted(["index.json", *(f"{s}.bin" for s in SPLITS)])
            for done in cache.glob("big*")
        )
        if list(cache.glob("[!.]*")):
            break  # it was quicker than us
    assert killed > 0
    corpus = open_corpus(str(source))
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == [corpus.folder.name]
    undisturbed = open_corpus(str(source), cache=tmp_path / "other")
    assert files_of(corpus.folder) == files_of(undisturbed.folder)


def test_two_processes_at_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", 2000)
    command = [sys.executable, "-c", OPEN, str(tmp_path / "x.jsonl")]
    children = [subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0] == outputs[1] == open_corpus(str(tmp_path / "x.jsonl")).sha256["train"] + "\n"


def test_waits_for_another_builder_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(tmp_path / "x.jsonl")
    write_jsonl(tmp_path / "x.jsonl", 200)
    folder = open_corpus(source).folder
    shutil.rmtree(folder)
    with (folder.parent / f".{folder.name}.lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(shards, "LOCK_PATIENCE_S", 0.1)
        refused(source, "is locked", code=errors.LOCKED)
        monkeypatch.setattr(shards, "LOCK_PATIENCE_S", 30.0)
        threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        assert open_corpus(source).folder == folder


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "x.jsonl", 200)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HECTOGPT_CACHE", str(tmp_path / "file" / "cache"))
    refused(tmp_path / "x.jsonl", "cannot write token shards", "HECTOGPT_CACHE", code=errors.STORAGE)
    if Path("/dev/full").exists():  # a disk that is full from the first byte on
        with pytest.raises(OSError, match="No space"), Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.cache_folder("x") == Path("x")
    assert data.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HECTOGPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert data.cache_folder() == Path("/xdg/hectogpt")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert data.cache_folder() == Path.home() / ".cache" / "hectogpt"


def test_progress_goes_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "x.jsonl", 200)
    open_corpus(str(tmp_path / "x.jsonl"))
    assert capfd.readouterr() == ("", "")
    data.build(str(tmp_path / "x.jsonl"), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "tokenising" in err


# The hub, developers' data, speed


def test_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands for the hub: `datasets` loads both by name. Offline, the cache is enough afterwards."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "set"
    folder.mkdir()
    texts = write_jsonl(folder / "train.jsonl", 200)
    refused(f"hf:{folder}:story", "its text columns are text", f"hf:{folder}:COLUMN")
    corpus = open_corpus(f"hf:{folder}")
    assert sorted(all_documents(corpus)) == sorted(text.encode() for text in texts)
    shutil.rmtree(folder)
    assert open_corpus(f"hf:{folder}").sha256 == corpus.sha256
    error = refused(f"hf:{folder}:text", "did not give", "to_json('corpus.jsonl')")
    assert "--corpus corpus.jsonl" in error.fix


@pytest.mark.network
def test_tinystories() -> None:
    corpus = open_corpus("tinystories")
    assert sum(corpus.n_documents.values()) == 21_197


@pytest.mark.shared
def test_developers_tinystories(shared_data: Path) -> None:
    corpus = open_corpus(str(shared_data / "tinystories" / "train.bin"))
    assert corpus.sha256["train"] == "8150053636d3565b163db2c573ea015625ee722e2ee5a2e60450e349d7801b81"
    assert corpus.n_documents == {"train": 5059, "dev": 589, "test": 587}

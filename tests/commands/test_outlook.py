"""The last words of a default run: what the top of the ladder would bring."""

from __future__ import annotations

import json
from dataclasses import asdict

from hectogpt.lab.outlook import Loss, Outlook, find_outlook
from tools.outlook import ROOT, TARGET, build


def test_the_figures_are_those_of_the_records() -> None:
    assert json.loads(TARGET.read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(build(ROOT / "results"))))
    assert find_outlook() == build(ROOT / "results")


def test_sentences() -> None:
    outlook = Outlook(3.0, (Loss("stories", "ab", 2.384),))
    assert (
        outlook.sentence("ab", 45.0) == "The recipe top reaches 2.38 nats/token on this text and takes about 2 min here"
    )
    assert outlook.sentence("cd", 5.0) == "The recipe top reaches a lower loss and takes about 1 min here"

"""A small run for tests of the pages, and how a view's numbers look to a reader."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from hectogpt.explore.pages.view import View, fragment
from hectogpt.model import Init, ModelConfig, Transformer
from hectogpt.model.weights import save_model

CONFIG = ModelConfig(16, 2, 2, 32, 50257)
SCRIPT = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"


def make_run(folder: Path) -> Path:
    """A finished run's folder, below a folder `runs`; weights large enough for peaked attention."""
    run = folder / "runs" / "first"
    run.mkdir(parents=True)
    torch.manual_seed(0)
    save_model(Transformer(CONFIG, Init(embedding=1.0, linear=0.8, head=1.0)), run)
    (run / "summary.json").write_text("{}")
    return run


def shown(view: View) -> dict[str, str]:
    """The named numbers as a reader sees them."""
    return dict(re.findall(r'data-name="(\w+)">([^<]*)<', fragment(view)))

"""What the top of the ladder would bring beside the default recipe: the last words of a default run.

The figures are means of recorded trials and ship with the package; `python -m tools.outlook` takes them from results/.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files

from hectogpt.json_files import read_json_object
from hectogpt.serialization import load


@dataclass(frozen=True)
class Loss:
    """The top's mean held-out loss (dev, nats per token) on a text. train_sha256: of its training tokens."""

    corpus: str
    train_sha256: str
    top: float


@dataclass(frozen=True)
class Outlook:
    """times: how many times as long as the default recipe the top takes on one machine."""

    times: float
    losses: tuple[Loss, ...]

    def sentence(self, train_sha256: str, seconds: float) -> str:
        """What to say after a run of the default recipe on a text that took so many seconds."""
        known = [loss.top for loss in self.losses if loss.train_sha256 == train_sha256]
        reached = f"reaches {known[0]:.2f} nats/token on this text" if known else "reaches a lower loss"
        return f"The recipe top {reached} and takes about {max(seconds * self.times / 60, 1):.0f} min here"


def find_outlook() -> Outlook:
    """The figures that ship with the package."""
    with as_file(files("hectogpt.lab") / "baselines" / "outlook.json") as path:
        found: Outlook = load(Outlook, read_json_object(path))
    return found

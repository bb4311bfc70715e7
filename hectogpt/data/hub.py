"""Data sets of the Hugging Face hub as sources, and whether the hub answers."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hectogpt.data.documents import Document, LeftOut, Source, cannot_use, column_of_text
from hectogpt.errors import UserError, set_to

TIMEOUT = 2.0  # seconds to wait for the hub's first answer
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")


@dataclass(frozen=True)
class HubSource(Source):
    """A split of a text data set of the Hugging Face hub, read as a stream: neither memory nor disk hold the whole.

    column: the one that holds the text, "" to find it. A part of a split, as in train[:1%], is downloaded first.
    """

    dataset: str
    column: str
    split: str

    @classmethod
    def of(cls, name: str, dataset: str, column: str, split: str) -> HubSource:
        """The source of a data set's column and split."""
        return cls(name, f"hf:{dataset}:{column}:{split}", None, "", dataset, column, split)

    def documents(self) -> Iterator[Document | LeftOut]:
        rows, column = self._load()
        for number, row in enumerate(rows.select_columns([column])):
            text = row[column]
            if isinstance(text, str) and text.strip():
                yield Document(f"{self.name} row {number}", text)
            else:
                yield LeftOut(f"row {number}", "empty")

    def _load(self) -> tuple[Any, str]:
        """The data set's rows and the column that holds its text."""
        try:
            check_hub_answers("datasets", self.dataset)  # before the import, which takes a second
            import datasets

            rows = datasets.load_dataset(self.dataset, split=self.split, streaming="[" not in self.split)
            if rows.features is None:  # of a stream: its first rows say
                rows = rows._resolve_features()
        except ImportError:
            raise UserError(
                f"corpus {self.name} needs the package datasets",
                why="it is an optional dependency",
                fix='pip install "hectogpt[hf]"',
            ) from None
        except (OSError, ValueError, RuntimeError) as error:  # offline, unknown name, no such split: all from the hub
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise cannot_use(
                self.name,
                f"the Hugging Face hub did not give {self.dataset} ({self.split}): {first[:200]}",
                'where there is a network, run  python -c "import datasets; '
                f"datasets.load_dataset('{self.dataset}', split='{self.split}').to_json('corpus.jsonl')\"  "
                "then copy corpus.jsonl here and " + set_to("corpus", "corpus.jsonl"),
            ) from None
        dtypes = {name: getattr(feature, "dtype", "") for name, feature in rows.features.items()}
        strings = [name for name, dtype in dtypes.items() if dtype in ("string", "large_string")]
        column = column_of_text(strings, self.column)
        if column not in strings:
            why = f"its text columns are {', '.join(strings) or 'none'}"
            raise cannot_use(self.name, why, set_to("corpus", f"hf:{self.dataset}:COLUMN"))
        return rows, column


def check_hub_answers(kind: str, name: str, reached: bool = False) -> None:
    """Ask for a repository of "models" or "datasets". Raises OSError if nothing comes within TIMEOUT; reached: also if
    the hub cannot be reached at all, which its library finds soon.

    The hub's library tries again for minutes where nobody answers. Looking up an address has no limit of time, so the
    question is asked from a thread that may be left behind.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE and not reached:  # the user's own wish: what is on this machine will do
        return
    faults: list[Exception] = []

    def ask() -> None:
        try:
            get_session().head(f"{constants.ENDPOINT}/api/{kind}/{name}", timeout=TIMEOUT)
        except Exception as error:  # of whatever library the hub's uses
            faults.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if thread.is_alive() or any("timeout" in type(fault).__name__.lower() for fault in faults):
        raise OSError(f"{constants.ENDPOINT} has not answered within {TIMEOUT:g} s")
    if faults and reached:
        raise OSError(f"{constants.ENDPOINT} cannot be reached: {faults[0]}")

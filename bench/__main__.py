"""`python -m bench [QUESTION ...]`: measure, print, and append the figures to results/bench.jsonl."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from bench import BY_NAME_ONLY, QUESTIONS
from hectogpt.hardware import physical_cores

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3  # all questions but two then take a quarter of an hour on two cores


def main() -> int:
    """Measure the questions in turn, each in a process of its own. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Side-by-side timings. Contenders take turns in one process; medians of the rounds are told.",
        epilog=f"questions (none: all but {' and '.join(BY_NAME_ONLY)}):\n"
        + "\n".join(f"  {n:<10}{text}" for n, text in QUESTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--setting", action="append", help="only this setting of the one question; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that all runs; not recorded")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contender (default: {ROUNDS})")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="of torch (default: physical cores)")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing: fill docs/performance.md from the records"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="file to append to (default: results/bench.jsonl, for recipes results/seconds.jsonl; with --tiny none)",
    )
    options = parser.parse_args()
    if options.page:
        from bench.page import write_pages

        print("\n".join(str(page.relative_to(ROOT)) for page in write_pages()))
        return 0
    names = options.questions or [name for name in QUESTIONS if name not in BY_NAME_ONLY]
    if unknown := [name for name in names if name not in QUESTIONS]:
        parser.error(f"no question {unknown[0]!r}: choose among {', '.join(QUESTIONS)}")
    if options.setting and (options.tiny or len(names) > 1):
        parser.error("--setting goes with one question, and not with --tiny")
    if min(options.rounds, options.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if len(names) == 1:
        return answer(names[0], options, parser)
    given = [word for word in sys.argv[1:] if word not in names]
    begun = time.perf_counter()
    failed = [name for name in names if not succeeds(name, given)]
    print(f"--- all: {time.perf_counter() - begun:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def succeeds(name: str, arguments: list[str]) -> bool:
    """Answer one question in a process of its own."""
    print(f"--- {name}", flush=True)
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    code = subprocess.run([sys.executable, "-m", "bench", name, *arguments], env=environment, check=False).returncode
    print(f"--- {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return code == 0


def answer(name: str, options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Answer one question in this process. Returns the exit code."""
    import torch

    from bench.record import RESULTS, SECONDS, now, record, show
    from hectogpt.errors import UserError

    torch.set_num_threads(options.threads)
    out = options.out or (None if options.tiny else SECONDS if name == "recipes" else RESULTS)
    try:
        question = importlib.import_module(f"bench.{name}")
        every = tuple(setting for setting in question.SETTINGS if setting != "tiny")
        settings = ["tiny"] if options.tiny else options.setting or every
        if unknown := [s for s in settings if s not in question.SETTINGS]:
            parser.error(f"{name} has no setting {unknown[0]!r}: choose among {', '.join(question.SETTINGS)}")
        for setting in settings:
            asked = {"bench": name, "setting": setting, "settings": every, "begun": now()}
            for text, rows in question.measure(setting, options.rounds):
                if setting == "tiny":
                    rows = [row | {"setting": setting} for row in rows]
                show(text, rows)
                if out is not None:
                    record(out, text, rows, asked, question.PACKAGES)
    except ModuleNotFoundError as error:
        print(f"error: {name} needs the package {error.name}\nfix: pip install --group bench", file=sys.stderr)
        return 2
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())

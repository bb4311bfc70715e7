"""`python -m bench [QUESTION ...]`: measure, print, and append the figures to results/bench.jsonl."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from bench import BY_NAME_ONLY, QUESTIONS, page
from bench.race import Race
from bench.record import RESULTS, SECONDS, now, record, show
from hectogpt.hardware import physical_cores

ROUNDS = 3  # the default questions then take a quarter of an hour on two cores


def main() -> int:
    """Measure the questions in turn. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Side-by-side timings. Each contender has its own process, and they take turns; the figures "
        "are medians over the rounds. If a contender fails, its row says why, and the exit code is 1.",
        epilog=f"questions (default: all except {' and '.join(BY_NAME_ONLY)}):\n"
        + "\n".join(f"  {n:<10}{text}" for n, text in QUESTIONS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--setting", action="append", help="only this setting of the one question; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that it all runs; not recorded")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contender (default: {ROUNDS})")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="of torch (default: physical cores)")
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="leave out contenders with names that begin so"
    )
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
        page.write_page()
        return 0
    names = options.questions or [name for name in QUESTIONS if name not in BY_NAME_ONLY]
    if unknown := [name for name in names if name not in QUESTIONS]:
        parser.error(f"no question {unknown[0]!r}: choose among {', '.join(QUESTIONS)}")
    if options.setting and (options.tiny or len(names) > 1):
        parser.error("--setting goes with one question, and not with --tiny")
    if min(options.rounds, options.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    race = Race(options.rounds, options.threads, tuple(options.without))
    begun = time.perf_counter()
    for name in names:
        print(f"--- {name}", flush=True)
        start = time.perf_counter()
        try:
            answer(name, options, race, parser)
        except Exception as error:  # the other questions are still answered
            traceback.print_exc()
            race.failed[name] = str(error)
        print(f"--- {name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"--- all: {time.perf_counter() - begun:.0f} s")
    for name, why in race.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return int(bool(race.failed))


def answer(name: str, options: argparse.Namespace, race: Race, parser: argparse.ArgumentParser) -> None:
    """Answer one question in each of its settings, and record it."""
    question = importlib.import_module(f"bench.{name}")
    every = tuple(setting for setting in question.SETTINGS if setting != "tiny")
    settings = ["tiny"] if options.tiny else options.setting or every
    if unknown := [s for s in settings if s not in question.SETTINGS]:
        parser.error(f"{name} has no setting {unknown[0]!r}: choose among {', '.join(question.SETTINGS)}")
    out = options.out or (None if options.tiny else SECONDS if name == "recipes" else RESULTS)
    for setting in settings:
        asked = {"bench": name, "setting": setting, "settings": every, "begun": now()}
        for text, rows in question.measure(setting, race):
            show(text, rows)
            if out is not None:
                record(out, text, rows, asked, race.threads, question.PACKAGES)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m hectogpt`; the command `hectogpt` calls `hectogpt.cli.main` directly."""

import sys

if not sys.flags.safe_path:
    # The working folder, which `python -m` adds: a file such as secrets.py there, which may be an
    # idea to judge, would be imported in place of Python's own.
    del sys.path[0]

from hectogpt.cli import main

if __name__ == "__main__":
    main()

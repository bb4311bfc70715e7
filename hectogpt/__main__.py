"""`python -m hectogpt`; the command `hectogpt` calls `hectogpt.cli.main` directly."""

import sys

if not sys.flags.safe_path:
    # Remove the working folder, which `python -m` adds. Otherwise a file such as secrets.py there,
    # perhaps an idea to judge, would be imported in place of Python's own.
    del sys.path[0]

from hectogpt.cli import main

if __name__ == "__main__":
    main()

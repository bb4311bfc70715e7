"""`python -m hectogpt`; the command `hectogpt` calls `hectogpt.cli.main` directly."""

import sys

if not sys.flags.safe_path:
    # Remove the working folder, which `python -m` adds. Otherwise a file in it such as secrets.py,
    # perhaps an idea to judge, would be imported instead of Python's own module.
    del sys.path[0]

from hectogpt.cli import main

if __name__ == "__main__":
    main()

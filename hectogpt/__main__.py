"""`hectogpt` and `python -m hectogpt`."""

from hectogpt.cli import main

if __name__ == "__main__":
    main()

"""`python -m hectogpt.cli`."""

from hectogpt.cli import main

if __name__ == "__main__":
    main()

"""`python tests/faults [quick] [NAME ...]`: test the promises of docs/reliability.md. See promises.py."""

import sys

from promises import main

sys.exit(main(sys.argv[1:]))

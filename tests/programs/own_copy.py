"""The command `hectogpt`, of a copy of the package where FOLDER/rank$RANK has one: python own_copy.py FOLDER ..."""

import os
import runpy
import sys

sys.path.insert(0, os.path.join(sys.argv.pop(1), f"rank{os.environ['RANK']}"))
runpy.run_module("hectogpt", run_name="__main__", alter_sys=True)

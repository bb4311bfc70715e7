"""Six steps of the textbook's own loop. Arguments: the folder of the textbook, the token file, the log to write."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

from model_solution import ModelConfig
from train import train

train(1e-3, 1.0, ModelConfig(33, 3, 3, 64, 50257), 2, 6, data=sys.argv[2], log=Path(sys.argv[3]))

"""Lets the tests find the three files, one folder up, from wherever pytest is started."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(1)  # the model is tiny

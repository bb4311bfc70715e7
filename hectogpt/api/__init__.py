"""What Python users call, and the parts of it that the command line calls too.

training (recipe, train), models (load, generate, attention_maps), comparing (compare); full_run drives a run that has a
folder. `hectogpt` itself has the names, and imports a module of these when one is used.
"""

import os

# What the command line does too, before torch is loaded: threads that wait by spinning slow down a busy machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

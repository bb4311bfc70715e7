"""What Python users call, and the parts of it that the command line calls too.

training (recipe, train), models (load, generate, attention_maps), comparing (compare); full_run drives a run that has a
folder. `hectogpt` itself has the names, and imports a module of these when one is used.
"""

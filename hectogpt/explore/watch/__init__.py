"""The page of `hectogpt watch`: curves of runs while they train, samples and attention of their checkpoints.

`rows` follows metrics.jsonl, `server` answers the page behind the gate of the other pages, and the page itself is plain
HTML, CSS and JavaScript of this folder. Nothing here writes to a run's folder.
"""

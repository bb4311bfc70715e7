"""Questions on known mistakes, drawn by a seed: the drill of a student, the exam of a class."""

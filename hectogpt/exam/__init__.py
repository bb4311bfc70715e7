"""Questions about known mistakes, drawn from a seed: a student's drill and a class's exam."""

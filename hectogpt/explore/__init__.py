"""The questions about attention and positions, answered with numbers; and a look into a trained model.

`attention` and `positions` are pure functions that return arrays. `numbers` computes every number of the written
answers (tools/answer_figures.py draws their figures). Nothing is trained here.
"""

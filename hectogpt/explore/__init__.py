"""The questions about attention and positions, answered with numbers, figures and interactive pages.

`attention` and `positions` are pure functions that return arrays. `numbers` computes every number of the written
answers, and `figures` draws their figures. `model_view` looks into a trained model, and `pages` holds the interactive
pages. Nothing is trained here.
"""

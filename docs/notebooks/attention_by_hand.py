import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell
def _():
    import marimo as mo

    return (mo,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    # Attention by hand

    Three keys, three values and one query, all with two numbers, so that every step can be checked with a pencil. At
    the end come the weights of a trained model.
    """)
    return


@app.cell
def _():
    import math

    import numpy as np
    import torch

    keys = np.array([[1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]])
    values = np.array([[4.0, 0.0], [0.0, 4.0], [-4.0, -4.0]])
    return keys, math, np, torch, values


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Scores, weights, output

    The score of a key is its product with the query. The softmax makes weights of the scores: all positive, with the
    sum one. The output is the mean of the values with these weights.
    """)
    return


@app.cell
def _(keys, np, values):
    def attend(query):
        """(weights, output) of one query."""
        scores = keys @ query
        weights = np.exp(scores - scores.max())
        weights = weights / weights.sum()
        return weights.round(3), (weights @ values).round(3)

    attend(np.array([1.0, 0.0]))
    return (attend,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Copying: a longer query

    The first key has the largest score. The longer the query, the larger the gap to the others, and the more of the
    weight is on this key: the output becomes its value.
    """)
    return


@app.cell
def _(attend, np):
    for length in (0, 1, 3, 10):
        print(length, *attend(length * np.array([1.0, 0.0])))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Averaging: a query between two keys

    A query with the same score for two keys, and a much smaller one for the third, gives the mean of two values.
    """)
    return


@app.cell
def _(attend, np):
    attend(10 * np.array([1.0, 1.0]))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## The mask, and many queries at once

    In a language model each position has a query, and sees only itself and what came before. The scores of later
    positions are minus infinity before the softmax, so their weights are exactly zero.
    """)
    return


@app.cell
def _(keys, math, torch):
    k = torch.tensor(keys)
    scores = k @ k.T / math.sqrt(2)  # here every key is also the query of its position
    hidden = torch.ones(3, 3).triu(diagonal=1).bool()
    pattern = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
    pattern
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## In a model

    A small model learns a small text for a few steps. `attention_maps` gives its weights, [layers, heads, T, T]. Every
    row sums to one, and nothing is above the diagonal.
    """)
    return


@app.cell
def _():
    import tempfile
    from pathlib import Path

    import hectogpt
    from hectogpt import replace

    text = Path(tempfile.mkdtemp(prefix="attention-")) / "stories.txt"
    text.write_text("\n\n".join("Anna walked to the river. Ben walked to the mill. " * 8 for _ in range(100)))
    recipe = hectogpt.recipe("adamw_128")
    run = replace(
        recipe,
        model=replace(recipe.model, d_model=16, n_heads=2, n_layers=1, context_length=64),
        data=replace(recipe.data, batch_size=4, seq_len=64),
        corpus=str(text),
        steps=10,
        threads=1,
    )
    result = hectogpt.train(run, quiet=True)
    maps = hectogpt.attention_maps(result, "Anna walked to the river.")
    maps.shape, maps.sum(axis=-1).min().round(4), maps[0, 0].round(2)
    return


if __name__ == "__main__":
    app.run()

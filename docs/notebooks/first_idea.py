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
    # A first idea

    A small transformer learns a small text. Then an idea of our own, a schedule for the learning rate, is tried against
    it. Everything is small, so that the notebook runs in half a minute; the last cell says what to change
    for a real experiment.
    """)
    return


@app.cell
def _():
    import random
    import tempfile
    from dataclasses import dataclass
    from pathlib import Path

    import matplotlib.pyplot as plt

    import hectogpt
    from hectogpt import replace

    return Path, dataclass, hectogpt, plt, random, replace, tempfile


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## A text

    Any file of text will do. This one has three thousand sentences of one kind.
    """)
    return


@app.cell
def _(Path, random, tempfile):
    folder = Path(tempfile.mkdtemp(prefix="first-idea-"))
    draw = random.Random(0)
    names = ["Anna", "Ben", "Clara", "David"]
    places = ["the river", "the old mill", "a quiet town", "the harbour"]
    sentences = [
        f"{draw.choice(names)} walked to {draw.choice(places)} and met {draw.choice(names)}." for _ in range(3000)
    ]
    text = folder / "stories.txt"
    text.write_text("\n".join(sentences))
    sentences[:3]
    return folder, text


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## A run

    A recipe is a frozen value. `replace` gives a changed one, and `print` shows its fields.
    """)
    return


@app.cell
def _(hectogpt, replace, text):
    recipe = hectogpt.recipe("adamw_128")
    run = replace(
        recipe,
        model=replace(recipe.model, d_model=32, n_heads=2, n_layers=2, context_length=64),
        data=replace(recipe.data, batch_size=8, seq_len=64),
        optim=replace(recipe.optim, lr=0.02),
        corpus=str(text),
        steps=20,
        threads=1,
    )
    print(run)
    return (run,)


@app.cell
def _(hectogpt, run):
    result = hectogpt.train(run)
    print(result)
    return (result,)


@app.cell
def _(hectogpt, result):
    hectogpt.generate(result, "Anna walked to", max_new_tokens=12)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## What it looks at

    `attention_maps` gives an array [layers, heads, T, T]: the weight that each token (a row) gives to those before it.
    """)
    return


@app.cell
def _(hectogpt, plt, result):
    maps = hectogpt.attention_maps(result, "Anna walked to the river and met Ben.")
    figure, axes = plt.subplots(*maps.shape[:2], figsize=(5, 5))
    for layer in range(maps.shape[0]):
        for head in range(maps.shape[1]):
            axes[layer, head].imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=1)
            axes[layer, head].set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
    figure.tight_layout()
    figure
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## An idea

    A schedule is a frozen dataclass with a method `factor(step, steps)`: what every learning rate is multiplied by.
    """)
    return


@app.cell
def _(dataclass, hectogpt):
    @dataclass(frozen=True)
    class HalfWay(hectogpt.Schedule):
        """The full learning rate until half of the run is over, then a tenth of it."""

        def factor(self, step: int, steps: int) -> float:
            return 1.0 if step < steps / 2 else 0.1

    return (HalfWay,)


@app.cell
def _(HalfWay, hectogpt, replace, result, run):
    changed = hectogpt.train(replace(run, schedule=HalfWay()))
    f"dev loss {result.dev_loss:.3f} with the recipe's schedule, {changed.dev_loss:.3f} with HalfWay"
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Is it luck?

    One run proves nothing: other first weights and another order of the data change the loss too. `compare` runs both
    on the same seeds and tests the differences. Each trial is a process of its own, which cannot see the cells of a
    notebook, so the idea goes into a file. In a file it works in the commands too:
    `hectogpt compare adamw_128 my_idea.py:half_way`.
    """)
    return


@app.cell
def _(folder):
    idea = folder / "my_idea.py"
    idea.write_text('''\
    from dataclasses import dataclass

    from hectogpt import Run, Schedule, replace


    @dataclass(frozen=True)
    class HalfWay(Schedule):
        """The full learning rate until half of the run is over, then a tenth of it."""

        def factor(self, step: int, steps: int) -> float:
            return 1.0 if step < steps / 2 else 0.1


    def half_way(run: Run) -> Run:
        return replace(run, schedule=HalfWay())
    ''')
    return (idea,)


@app.cell
def _(hectogpt, idea, run):
    comparison = hectogpt.compare([run, f"{idea}:half_way"], seeds=2)
    print(comparison)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    For a real experiment: `hectogpt.compare(["top", "my_idea.py:half_way"], seeds=5)`, which trains the best recipe of
    the ladder on the corpus that comes with the package, a hundred steps a trial.
    """)
    return


if __name__ == "__main__":
    app.run()

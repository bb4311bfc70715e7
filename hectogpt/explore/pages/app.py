# /// script
# [tool.marimo.display]
# theme = "system"
# ///
"""The marimo app behind `hectogpt explore`: controls and the views they set; it computes nothing itself.

Only the chosen page runs, and torch is imported when a page first needs it.
"""

import marimo

app = marimo.App(width="full", app_title="hectoGPT explore")


@app.cell
def _():
    from pathlib import Path

    import marimo as mo

    from hectogpt.explore.pages import by_hand, controls

    mo.output.replace(mo.Html(controls.HEAD))
    return Path, by_hand, controls, mo


@app.cell
def _(controls, mo):
    page = mo.ui.tabs({name: mo.Html(text) for name, text in controls.PAGES.items()})
    mo.output.replace(page)
    return (page,)


@app.cell
def _(by_hand, controls, mo, page):
    mo.stop(page.value != controls.BY_HAND)
    hand_controls = controls.make_by_hand(by_hand.ByHand())
    controls.lay_out(hand_controls)
    return (hand_controls,)


@app.cell
def _(by_hand, controls, hand_controls):
    controls.show_view(lambda: by_hand.view(controls.read_by_hand(hand_controls.value)), "attention")
    return


@app.cell
def _(controls, mo, page):
    mo.stop(page.value != controls.ORDER)
    from hectogpt.explore.pages import order

    order_controls = controls.make_order(order.Order())
    controls.lay_out(order_controls)
    return order, order_controls


@app.cell
def _(controls, order, order_controls):
    controls.show_view(lambda: order.view(controls.read_order(order_controls.value)), "positions")
    return


@app.cell
def _(Path, controls, mo, page):
    mo.stop(page.value != controls.TRAINED)
    from hectogpt.explore.pages import trained

    folder = controls.make_folder(trained.choose(controls.asked.model, Path("runs")))
    mo.output.replace(folder)
    return folder, trained


@app.cell
def _(Path, controls, folder, mo, trained):
    mo.stop(not folder.value, mo.Html(controls.NO_RUN))
    try:
        sizes = trained.load(Path(folder.value), controls.asked.ideas)[0].config
    except Exception as error:
        mo.stop(True, controls.explain(error))
    model_controls = controls.make_trained(
        trained.Trained(), sizes.n_layers, sizes.n_heads, min(trained.LONGEST, sizes.context_length)
    )
    controls.lay_out(model_controls)
    return (model_controls,)


@app.cell
def _(Path, controls, folder, model_controls, trained):
    settings = controls.read_trained(model_controls.value)
    controls.show_view(lambda: trained.view(Path(folder.value), settings, controls.asked.ideas), "model")
    return


if __name__ == "__main__":
    app.run()

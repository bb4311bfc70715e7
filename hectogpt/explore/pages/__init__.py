"""Interactive pages: attention by hand, positions, and the attention of a trained model.

Each page has a settings class and a pure function `view` from settings to drawings and numbers (`by_hand`, `order`,
`trained`). `app` is the marimo app that shows the views; `hectogpt explore export` writes them to files. Text from
prompts is never interpreted as HTML.
"""

"""Interactive pages over the functions of explore: attention by hand, positions, a trained model's attention.

`app` is the marimo app; each view is a pure function from settings to drawings and numbers, which the app shows and
`hectogpt explore export` writes to a file. Text from prompts is never interpreted as HTML.
"""

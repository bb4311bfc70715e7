"""The questions about attention and position, answered with numbers.

`attention` and `positions` are pure functions returning arrays; `numbers` is every figure that the answers
quote, `figures` draws them and `answers` makes one PDF of the Markdown. Nothing is trained here.
"""

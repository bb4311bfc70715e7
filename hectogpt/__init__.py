"""hectoGPT: understand, build and speed up a GPT-2 style transformer in one hundred gradient steps.

Rooms, from the ground up; imports point down only (docs/architecture.md):

data     text becomes token batches             model    the transformer, its loss head, generation
train    a Run: optimizer, schedule, loop       lab      recipes, statistics, anchors, reports
interop  other people's formats                 explore  attention and positions, in numbers and pages
cli      the one door; imports a room only when its command is used
"""

__version__ = "0.1.0"

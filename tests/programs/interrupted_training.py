"""A user's script that trains until Ctrl-C, and shows what reaches it. Arguments: corpus, folder."""

import sys

from hectogpt import AdamW, Data, ModelConfig, Run, train

run = Run(
    model=ModelConfig(d_model=16, n_heads=2, n_layers=1, context_length=32, vocab_size=50257),
    data=Data(batch_size=2, seq_len=32),
    optim=AdamW(lr=1e-3),
    corpus=sys.argv[1],
    steps=5000,
    threads=1,
    dtype="float32",
    head_dtype="float32",
)
try:
    train(run, out=sys.argv[2], quiet=True)
except KeyboardInterrupt as stop:
    print(stop)
    raise

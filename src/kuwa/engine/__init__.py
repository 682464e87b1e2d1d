"""Continuous batching over token ids: many requests through one transformers model at once.

`loop.Engine` is what executors use: `generate` gives a request's tokens as they come. Its thread repeats one step:
`scheduler` decides which tokens of which requests are computed (pure, without torch), a backend (`slots`: packed
batches on a key-value arena; `turns`: one request after the other with a cache of its own) computes them, `sampler`
draws the next token of each request by that request's own parameters. `probe` chooses the backend for a model.
Nothing here knows of text, HTTP, the kernel or the executor framework.
"""

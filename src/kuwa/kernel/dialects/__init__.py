"""The client dialects, a folder each: how a request of it becomes a `Call`, and how OpenAI events become its answer.

A dialect knows nothing of replicas: they are spoken to by `kernel/wires`, which yield OpenAI events whatever the
replica speaks. Adding a dialect is a folder here and a line in the route table of `kernel/app`.
"""

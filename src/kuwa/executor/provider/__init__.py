"""What executors in front of somebody else's API share: `keys` says whose API key a request is sent with, `failures`
what the client is told when the provider refuses or breaks down, `context` which old turns go where a conversation
is too long. Used by `chatgpt` and `geminipro`; anybody's executor may use it.
"""

"""What crosses a process boundary: errors, typed messages, SSE, the v1.0 form wire.

Standard library and msgspec only. Both programs stand on it; it stands on nothing of ours.
"""

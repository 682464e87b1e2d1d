"""The kernel's table of routes, taken from the kernel itself: what a test of every route goes through."""

from __future__ import annotations

from kuwa.kernel.app import Kernel, routes
from kuwa.kernel.settings import Settings


def table() -> list[tuple[str, str]]:
    """Every method and path that the kernel answers."""
    hot, cold = routes(Kernel(Settings()))
    served = {("POST", path) for path in hot}
    served |= {(method, route.path) for route in cold for method in route.methods or ()}
    return sorted(served)


def example_path(path: str) -> str:
    """A path that the route `path` matches."""
    return path.replace("{id:path}", "debug").replace("{id}", "req_1")

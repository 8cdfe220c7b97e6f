"""How long a call takes, for choices between two ways of computing the same."""

import time
from collections.abc import Callable


def shortest_time(
    function: Callable[[], object], repeats: int, synchronize: Callable[[], object] | None = None
) -> float:
    """The shortest of several calls behind a first one, in seconds: what else the machine does only ever adds.

    ``synchronize`` waits for what the call left running.
    """
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if synchronize is not None:
            synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])

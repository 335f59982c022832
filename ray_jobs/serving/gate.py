"""How many requests are inside the server, and when a refused one should come back."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray_jobs.serving.errors import ApiError


class Gate:
    """Counts the requests inside and refuses one too many with 429.

    The count is exact and a comparison of many models counts once. (Serve's own ``max_queued_requests`` counts a
    burst before it is handed to replicas, so it would refuse requests while places are free, and parts of others.)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.inside = 0
        self.seconds = 1.0

    @contextmanager
    def admit(self) -> Iterator[None]:
        if self.inside >= self.capacity:
            message = f"The server is busy with {self.inside} requests, as many as it takes; try again later."
            raise ApiError(429, message, "server_overloaded", retry_after_s=self.retry_after_s)
        self.inside += 1
        start = time.monotonic()
        try:
            yield
            self.seconds += 0.2 * (time.monotonic() - start - self.seconds)
        finally:
            self.inside -= 1

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, 1 to 30: when about half of the requests now inside should be answered."""
        return min(30, max(1, math.ceil(self.seconds / 2)))

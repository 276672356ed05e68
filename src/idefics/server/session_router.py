"""`SessionRouter`: Ray Serve sends the requests of a session to the replica that had the one before.

Imports Ray, unlike all other modules: Ray Serve imports the class by its name, in the process of its proxy.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter


class SessionRouter(ConsistentHashRouter):  # type: ignore[misc]  # Ray has few hints
    """Chooses the replica of a request by its header `x-session-id`, if it has one; else the less busy of two.

    The same session has the same replica, whose caches hold its pictures and the beginning of its prompts. Ray Serve
    routes a request before its body arrives: the content of a request cannot choose the replica.
    """

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """See Ray's `RequestRouter.choose_replicas`."""
        if pending_request is not None and pending_request.metadata.session_id:
            ranked: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
            return ranked
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

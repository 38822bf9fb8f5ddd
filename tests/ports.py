"""A port for a server that is started later, in another process."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """Return a port that nobody listens on.

    Below those that the kernel gives to outgoing connections: one could take it before the server does.
    """
    while True:
        port = random.SystemRandom().randint(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

"""Deadlines of replies: a server that sends a byte now and then is never silent, and would be waited for for ever."""

import socket
import threading
import time
from typing import Any

LONGEST = 900.0
"""Seconds within which an exchange with a server ends: connecting, sending, and its whole reply."""

SLOWEST = 1e6
"""Bytes per second: an exchange may take longer by the time that its largest reply needs at this rate."""


class TooSlow(Exception):
    """A reply was not complete in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"its reply was not complete within {seconds:,.4g} seconds")


def allowed(most: int) -> float:
    """Seconds for a reply of at most `most` bytes."""
    return LONGEST + most / SLOWEST


class Deadline:
    """A block that ends within `allowed(most)` seconds: the connection is shut down then, and TooSlow raised.

    `opened` and `holds` are told which connections.
    """

    def __init__(self, most: int) -> None:
        self.seconds, self._passed, self._connections = allowed(most), False, list[Any]()
        self._timer = threading.Timer(self.seconds, self._shut_down)
        self._timer.daemon = True

    def __enter__(self) -> "Deadline":
        self._timer.start()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._timer.cancel()
        if error is None or isinstance(error, Exception):
            self.check()

    def check(self) -> None:
        """Raises TooSlow after the deadline."""
        if self._passed:
            raise TooSlow(self.seconds)

    def opened(self, event: str, info: dict[str, Any]) -> None:
        """What httpx calls at every event (its extension "trace"): a new connection may be shut down."""
        stream = info.get("return_value")
        # TLS takes the socket of the connection over, so that its own one is shut down
        if event.endswith(("connect_tcp.complete", "start_tls.complete")) and stream is not None:
            self.holds(stream.get_extra_info("socket"))

    def holds(self, connection: Any) -> None:
        """A socket, or an object with one as `sock`, which is shut down at the deadline."""
        self._connections.append(connection)

    def _shut_down(self) -> None:
        self._passed = True
        for connection in self._connections:
            opened = getattr(connection, "sock", connection)
            try:  # not the method of a TLS socket, which would wait for the reader
                socket.socket.shutdown(opened, socket.SHUT_RDWR)
            except (OSError, TypeError):  # it is closed, or not opened yet
                continue


class MessageClock:
    """The time since the first byte of a message that is not complete."""

    def __init__(self, most: int) -> None:
        self.seconds, self._in_parts = allowed(most), False
        self._began: float | None = None

    def tick(self, came: bool = False) -> None:
        """Bytes came, or none. Raises TooSlow if the message began too long ago."""
        if came and self._began is None:
            self._began = time.monotonic()
        if self._began is not None and time.monotonic() - self._began > self.seconds:
            raise TooSlow(self.seconds)

    def frame(self, opcode: int, last: bool) -> None:
        """A frame is complete. A ping is no part of a message, and between messages a server may think as long as it
        likes."""
        if opcode < 8:
            self._in_parts = not last
        if not self._in_parts:
            self._began = None

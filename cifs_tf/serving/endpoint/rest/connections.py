"""HTTP connections with limits: slow, half-closed or too many of them do not disturb the other clients."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# The first line of a request by a client of HTTP/1.0 that asks to keep the connection, up to the version.
_KEPT_ALIVE = re.compile(
    rb"([A-Z]+ [^ \r\n]+ HTTP/1\.)0(?=\r\n)(?=(?:.*\r\n)*?connection: *keep-alive *\r\n)", re.IGNORECASE
)
_HAS_HOST = re.compile(rb"\r\nhost:", re.IGNORECASE)
# After a limit, to look once more: where the machine let nobody run, what came in time was not read in time.
LAST_LOOK_SECONDS = 0.1


def guarded_protocol(receive_timeout: float, max_connections: int) -> type[H11Protocol]:
    """Make uvicorn's HTTP protocol with limits that uvicorn does not have.

    A client has `receive_timeout` for the head of a request (the application limits its body), and to take an answer;
    beyond `max_connections` the one that has been idle longest is closed, or the new one if none is; a client that
    sends its request, closes its side and listens is answered; and a client of HTTP/1.0 that asks for it keeps its
    connection.

    Args:
        receive_timeout: seconds, > 0.
        max_connections: open at a time, > 0.

    Returns:
        a class for `uvicorn.Config(http=...)`.
    """

    class GuardedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _half_closed = False
        since = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.since = self.loop.time()
            transport.set_write_buffer_limits(high=0)  # whatever is not taken at once starts the clock
            if len(self.connections) > max_connections:
                others: Any = self.connections
                idle = [each for each in others if each is not self and each.is_idle]
                # Those that never asked anything first.
                victim = min(idle, key=lambda each: (each.cycle is not None, each.since), default=self)
                victim.transport.abort()
                if victim is self:
                    return
                self.connections.discard(victim)
            self._watch_head()

        @property
        def is_idle(self) -> bool:
            """True if no request is being received or answered."""
            answered = self.cycle is None or self.cycle.response_complete
            return answered and self.conn.their_state in (h11.IDLE, h11.DONE) and not self.conn.trailing_data[0]

        def data_received(self, data: bytes) -> None:
            if self.conn.their_state is h11.IDLE and (found := _KEPT_ALIVE.match(data)):
                # h11 closes after every answer to HTTP/1.0; every answer of this server tells its length.
                host = b"" if _HAS_HOST.search(data[: data.find(b"\r\n\r\n") + 2]) else b"\r\nhost: -"
                data = found[1] + b"1" + host + data[found.end() :]
            self.since = self.loop.time()
            super().data_received(data)
            self._watch_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(receive_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread:
                self._unread.cancel()
                self._unread = None

        def eof_received(self) -> bool:  # type: ignore[override]
            asked = self.cycle is not None and not self.cycle.response_complete
            self._half_closed = asked and self.conn.their_state is not h11.SEND_BODY
            return self._half_closed

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._half_closed and self.cycle.response_complete:  # no further request came before the end
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            if self._unread:
                self._unread.cancel()
            super().connection_lost(exc)

        def _watch_head(self) -> None:
            """Start the clock with the first byte of a head, stop it with the last."""
            if self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self._timer is None:
                self._timer = self.loop.call_later(receive_timeout, self._look_once_more)

        def _look_once_more(self) -> None:
            self._timer = self.loop.call_later(LAST_LOOK_SECONDS, self.transport.abort)

        def _stop_timer(self) -> None:
            if self._timer:
                self._timer.cancel()
                self._timer = None

    return GuardedProtocol

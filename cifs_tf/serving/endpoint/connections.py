"""HTTP connections with limits: slow, half-closed or too many of them do not disturb the other clients."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def guarded_protocol(receive_timeout: float, max_connections: int) -> type[H11Protocol]:
    """Make uvicorn's HTTP protocol with limits that uvicorn does not have.

    A client has `receive_timeout` for the head of a request (the application limits its body), and to take an answer;
    more than `max_connections` are closed as they come; and a client that sends its request, closes its side and
    listens is answered.

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

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # whatever is not taken at once starts the clock
            if len(self.connections) > max_connections:
                transport.abort()
            else:
                self._watch_head()

        def data_received(self, data: bytes) -> None:
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
                self._timer = self.loop.call_later(receive_timeout, self.transport.abort)

        def _stop_timer(self) -> None:
            if self._timer:
                self._timer.cancel()
                self._timer = None

    return GuardedProtocol

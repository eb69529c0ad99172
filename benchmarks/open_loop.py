"""Sends events at fixed times, whatever the responses do: `python -m benchmarks.open_loop`.

Each event carries the time when it was due, not when it was sent: if the server stalls, the latency
includes the wait of every request behind it.
"""

import asyncio
import sys
import time
from collections.abc import Sequence

from benchmarks.pipeline import payload

CONNECTIONS = 64


class _Connection(asyncio.Protocol):
    """An HTTP/1.1 connection with at most one request in progress."""

    def __init__(self, idle: "asyncio.Queue[_Connection]") -> None:
        self._idle = idle
        self._received = b""
        self.statuses: list[bytes] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._idle.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"}"):  # a response's body is a JSON object
            self.statuses.append(self._received[9:12])
            self._received = b""
            self._idle.put_nowait(self)


async def send(port: int, path: str, rate: float, seconds: float) -> Sequence[bytes]:
    """Post `rate` events a second for `seconds`; returns the responses' status codes."""
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[_Connection] = asyncio.Queue()
    connections = [
        (await loop.create_connection(lambda: _Connection(idle), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    rest = payload(0)[1:]
    start = time.monotonic() + 0.1
    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        connection = await idle.get()
        body = f'{{"due": {due:.6f}, {rest}'
        request = f"{head}content-length: {len(body)}\r\n\r\n{body}"
        connection.transport.write(request.encode())
    for _ in range(CONNECTIONS):
        await asyncio.wait_for(idle.get(), 30)
    return [status for connection in connections for status in connection.statuses]


if __name__ == "__main__":
    port, path, rate, seconds = sys.argv[1:]
    statuses = asyncio.run(send(int(port), path, float(rate), float(seconds)))
    rejected = [status for status in statuses if status != b"202"]
    print(f"{len(statuses)} sent, {len(rejected)} rejected")
    sys.exit(bool(rejected))

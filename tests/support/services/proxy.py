"""A TCP link to a service that tests cut, silence and slow, like the network between two hosts."""

import contextlib
import socket
import struct
import threading
import time

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset


class Link:
    """Forwards connections to a port of the loopback.

    While the link is *silent*, nothing gets through and connections stay open; what was sent arrives
    once the link is fixed. While it is *cut*, connections are reset and new ones refused.
    `delay`: the seconds by which each chunk is delayed, in each direction.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._forwarding = threading.Event()
        self._forwarding.set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.delay = 0.0
        self.port = 0
        self._listen()

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections, self._open = self._open, set()
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in connections:
            _reset(connection)
        self._forwarding.set()

    def silence(self) -> None:
        """Stop forwarding, with open connections."""
        self._forwarding.clear()

    def fix(self) -> None:
        """Let everything through again, at full speed."""
        self.delay = 0.0
        self._forwarding.set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                near, _ = listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            _reset(near)
            return
        far.settimeout(None)
        with self._lock:
            if self._listener is None:
                _reset(near)
                _reset(far)
                return
            self._open |= {near, far}
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65_536):
                time.sleep(self.delay)
                self._forwarding.wait()
                sink.sendall(chunk)
        with self._lock:
            self._open -= {source, sink}
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)  # wakes the threads that block in it
    connection.close()

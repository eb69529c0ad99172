"""The gateway's interface, and the standard gateway: uvicorn in one process or several."""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from blacksmith_dagster.admin import answering, listen
from blacksmith_dagster.backends import Backends
from blacksmith_dagster.errors import BlacksmithError, DeclarationError, SettingsError, Unavailable
from blacksmith_dagster.ingest.group_commit import StoreOutages
from blacksmith_dagster.logs import announce
from blacksmith_dagster.pipeline.access import checked_networks
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.supervisor import GATEWAY, Service, package_version, registered

if TYPE_CHECKING:
    import uvicorn

    from blacksmith_dagster.store import Store


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WILDCARD_HOSTS = ("", "0.0.0.0", "::")
_GRACE = 20  # seconds in which requests under way have to end
_KEEP_ALIVE = 75  # seconds; longer than the 60 of most load balancers
_BACKLOG = 2048
_MAINTENANCE_SECONDS = 5.0  # events are counted slowly until `Store.maintain` has added them up
_LONGEST_SILENCE = 30.0  # seconds; longer than the end of requests takes when it stops
_RESTART_GAP = 1.0  # seconds; the pause before a worker that lived shorter than this is replaced

_log = logging.getLogger(__name__)


class Gateway(Protocol):
    """Receives events and commits them to the store. A team can write its own."""

    def serve(self, app: Blacksmith, settings: Settings) -> None:
        """Receive until SIGTERM or SIGINT; what was accepted is committed before it returns."""
        ...


@dataclass(frozen=True, slots=True)
class StandardGateway:
    """Receives events over HTTP, on uvicorn.

    - `host`, `port`: the loopback by default; port 0 takes a free one.
    - `workers`: processes that serve the same port, each with its own store connection.
    - `tls_certificate`, `tls_key`: PEM files; the certificate's may hold the key too.
    - `queue`: how many events may wait for their commit in each worker; more get a 429.
    - `admin_port`, `admin_host`: where `/health/live` and `/health/ready` are served, for probes; the
      loopback by default, without TLS. Without a port they are not served.
    - `trusted_proxies`: addresses or networks of the proxies before it. Only their X-Forwarded-For
      and X-Forwarded-Proto, which name the client, are trusted; by default no proxy's are.

    >>> StandardGateway(port=8080).host
    '127.0.0.1'
    """

    host: str = "127.0.0.1"
    port: int = 8420
    workers: int = 1
    tls_certificate: str | Path | None = None
    tls_key: str | Path | None = None
    queue: int = 10_000
    trusted_proxies: Sequence[str] = ()
    admin_port: int | None = None
    admin_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if self.workers < 1 or self.queue < 1:
            raise DeclarationError(
                f"StandardGateway(workers={self.workers}, queue={self.queue}): use numbers above 0"
            )
        if self.trusted_proxies:
            checked_networks("StandardGateway(trusted_proxies=...)", self.trusted_proxies)
        if self.tls_key is not None and self.tls_certificate is None:
            raise DeclarationError(
                "StandardGateway(tls_key=...) is the key of a certificate; pass tls_certificate too"
            )

    def serve(self, app: Blacksmith, settings: Settings) -> None:
        """Receive until SIGTERM or SIGINT; what was accepted is committed before it returns.

        Raises `SettingsError` if it cannot listen there or use the certificate, `MissingSecret` if
        a source's token is not set, and what opening the store raises.
        """
        _raise_file_limit()
        self._check_credentials(app)
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(self._listen())
            admin = None
            if self.admin_port is not None:
                admin = opened.enter_context(listen(self.admin_host, self.admin_port))
            # Upgrade the schema once, before the first request and before the fork.
            with Backends(settings, upgrade=True) as backends:
                backends.store.register(app)
                announce(f"blacksmith gateway: {self._url(listener)}, {backends.label}")
            work = partial(self._work, app, settings, listener, admin, _Heartbeats(self.workers))
            if self.workers == 1:
                work(0)
            else:
                _WorkerProcesses(self.workers, work).run()

    def check(self, app: Blacksmith) -> None:
        """Raise the `SettingsError` that `serve` would raise: of a secret, a certificate or a port."""
        self._check_credentials(app)
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._listen())
            if self.admin_port is not None:
                opened.enter_context(listen(self.admin_host, self.admin_port))

    def _check_credentials(self, app: Blacksmith) -> None:
        self._check_tls()
        for receiver in [*app.source_events.values(), *app.webhooks]:
            if receiver.auth is not None:
                receiver.auth.check()  # report an invalid token now, not to a sender

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise SettingsError(
                f"the gateway cannot listen on {self.host}, port {self.port} ({_reason(error)}); "
                "stop the process that uses it, or choose another port with --port"
            ) from error

    def _check_tls(self) -> None:
        if self.tls_certificate is None:
            return
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.tls_certificate, self.tls_key
            )
        except OSError as error:
            raise SettingsError(
                f"the TLS certificate {self.tls_certificate} and its key cannot be used ({error}); "
                "pass PEM files that this process may read"
            ) from error

    def _url(self, listener: socket.socket, host: str | None = None) -> str:
        scheme, host = "https" if self.tls_certificate else "http", host or self.host
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}:{listener.getsockname()[1]}"

    def _service(self, app: Blacksmith, listener: socket.socket) -> Service:
        name, port = socket.gethostname(), listener.getsockname()[1]
        host = name if self.host in _WILDCARD_HOSTS else self.host
        return Service(
            GATEWAY,
            f"{GATEWAY}:{name}:{port}",
            host,
            port,
            f"{self._url(listener, host)}/_health",
            package_version(),
            list(app.sources),
        )

    def _work(
        self,
        app: Blacksmith,
        settings: Settings,
        listener: socket.socket,
        admin: socket.socket | None,
        heartbeats: _Heartbeats,
        number: int,
    ) -> None:
        # Imported here: a process that only declares a gateway, as Dagster's do, needs no server.
        import uvicorn

        from blacksmith_dagster.gateway.app import create_app
        from blacksmith_dagster.gateway.protocol import GatewayProtocol

        with contextlib.ExitStack() as opened:
            backends = opened.enter_context(Backends(settings, upgrade=True))
            store, supervisor, outages = backends.store, backends.supervisor, StoreOutages()
            store.register(app)
            config = uvicorn.Config(
                create_app(
                    app,
                    store,
                    queue=self.queue,
                    outages=outages,
                    notifier=backends.notifier(app),
                    supervisor=supervisor if settings.supervisor_url else None,
                    beat=partial(heartbeats.beat, number),
                ),
                http=GatewayProtocol,
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=bool(self.trusted_proxies),
                forwarded_allow_ips=list(self.trusted_proxies),
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=_GRACE,
                ssl_certfile=self.tls_certificate,
                ssl_keyfile=self.tls_key,
            )
            server = uvicorn.Server(config)
            # The objects created so far stay alive. Unless they are frozen, each garbage collection
            # would walk them, and pause the process for tens of milliseconds.
            gc.collect()
            gc.freeze()
            opened.enter_context(_stopped_by_signals(server))
            # One of its processes also registers the gateway, maintains the store and answers probes.
            if number == 0:
                opened.enter_context(registered(supervisor, self._service(app, listener)))
                opened.enter_context(_maintenance(store, outages))
                if admin is not None:
                    opened.enter_context(answering(admin, heartbeats.problems, store.ready))
            server.run(sockets=[listener])


class _Heartbeats:
    """When each process last made progress, in memory that the forked processes share."""

    def __init__(self, processes: int) -> None:
        self._at = memoryview(mmap.mmap(-1, 8 * processes)).cast("d")
        for number in range(processes):
            self.beat(number)

    def beat(self, number: int) -> None:
        """Note that a process makes progress."""
        self._at[number] = time.monotonic()  # the same clock in all of them

    def problems(self) -> list[str]:
        """Which processes make no progress."""
        silences = enumerate(time.monotonic() - at for at in self._at)
        return [
            f"gateway worker {number} has made no progress for {silence:.0f} s"
            for number, silence in silences
            if silence > _LONGEST_SILENCE
        ]


def _reason(error: OSError) -> str:
    """Why the system refuses an address, without the address, which Python appends."""
    return str(error.strerror).partition(" (while attempting")[0]


class _WorkerProcesses:
    """Worker processes, forked: an application consists of functions, which cannot be pickled.

    A worker that dies is replaced. Workers end with their parent, however it dies: each watches a
    pipe whose other end the parent holds.
    """

    def __init__(self, number: int, work: Callable[[int], None]) -> None:
        self._number = number
        self._work = work
        self._fork = multiprocessing.get_context("fork")
        self._parent_pipe, self._parents_end = self._fork.Pipe(duplex=False)
        self._running: dict[int, BaseProcess] = {}
        self._started: dict[int, float] = {}
        self._stopping = False

    def run(self) -> None:
        """Keep the workers running until SIGTERM or SIGINT, then stop them and wait for them."""
        before = {number: signal.signal(number, self._stop) for number in _STOP_SIGNALS}
        try:
            for number in range(self._number):
                self._start(number)
            while self._running:
                wait([worker.sentinel for worker in self._running.values()])
                for number, worker in list(self._running.items()):
                    if not worker.is_alive():
                        self._ended(number, worker)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, number: int) -> None:
        worker = self._fork.Process(target=self._worker, args=(number,), name=f"gateway-{number}")
        # Block signals: here until `_running` has the worker, in the worker until it has its handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            if not self._stopping:
                worker.start()
                self._running[number] = worker
                self._started[number] = time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def _ended(self, number: int, worker: BaseProcess) -> None:
        del self._running[number]
        worker.join()
        if self._stopping:
            return
        _log.error("gateway worker %d ended with %s; starting another", number, worker.exitcode)
        if time.monotonic() - self._started[number] < _RESTART_GAP:
            time.sleep(_RESTART_GAP)
        self._start(number)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for worker in list(self._running.values()):
            worker.terminate()

    def _worker(self, number: int) -> None:
        os.setpgrp()  # only the parent gets Ctrl-C, and stops each worker once
        for stop_signal in _STOP_SIGNALS:
            signal.signal(stop_signal, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        self._parents_end.close()
        threading.Thread(target=_stop_with, args=(self._parent_pipe,), daemon=True).start()
        self._work(number)


def _stop_with(parent: Connection) -> None:
    with contextlib.suppress(EOFError):
        parent.recv_bytes()  # nothing is ever sent; raises EOFError when the parent has ended
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Stop at a signal that arrives before uvicorn has installed its handlers, and survive the signal
    that it raises again at its end."""

    def stop(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _maintenance(store: Store, outages: StoreOutages) -> Iterator[None]:
    """Call `store.maintain()` every few seconds in a thread of its own."""
    ended = threading.Event()

    def maintain() -> None:
        while not ended.is_set():
            try:
                store.maintain()
                outages.responded()
            except Unavailable as error:
                outages.failed(error)
            except BlacksmithError as error:
                _log.warning("the store's maintenance is postponed: %s", error)
            except Exception:  # noqa: BLE001 - a gateway that receives events must survive this
                _log.exception("the store's maintenance has failed and will be retried")
            ended.wait(_MAINTENANCE_SECONDS)

    thread = threading.Thread(target=maintain, name="blacksmith-maintenance", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _raise_file_limit() -> None:
    """Raise the soft limit of open files. It is often 1,024: too few for a thousand slow senders."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

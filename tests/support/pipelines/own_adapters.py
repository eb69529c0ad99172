"""The example application with a minimal gateway and scheduler, as a user may write them."""

import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec

from assets.flights import airport, alerts, departed, desk, warehouse
from blacksmith_dagster import Batch, Blacksmith, DestinationEvent, Event, Job, Request
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.scheduler import LoadReport, Summary, Tally
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import FencingToken, LoadVerdict
from blacksmith_dagster.supervisor import Lease


class PlainGateway:
    """Receives with Python's own HTTP server, one request at a time."""

    def serve(self, app: Blacksmith, settings: Settings) -> None:
        store = open_store(settings.store_url, upgrade=True)
        store.register(app)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                [ids] = ingest(app, store, departed, [Request(body, headers)])
                response = msgspec.json.encode({"ids": ids})
                self.send_response(202)
                self.send_header("Content-Length", str(len(response)))
                self.end_headers()
                self.wfile.write(response)

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            HTTPServer(("127.0.0.1", int(os.environ["PLAIN_PORT"])), Handler).serve_forever()
        except KeyboardInterrupt:
            store.close()


class PlainScheduler:
    """Loads without retries, time-outs or outcomes: an exception ends the run."""

    def drain(
        self,
        app: Blacksmith,
        event: DestinationEvent[Any],
        *,
        store: Store,
        token: FencingToken,
        lease: Lease,
        run: str | None,
        stop: threading.Event,
        report: Callable[[LoadReport], None],
    ) -> Summary:
        assert event.destination.connect is not None
        summary, connection = Summary(), event.destination.connect()
        opened = next(connection)
        while load := store.loads.claim(token, event.batch_size, event.retry.max_attempts, run):
            jobs = []
            for row in load.rows:
                data = msgspec.json.decode(row.payload, type=event.flows[row.event_type].on.model)
                stored = Event(data, id=row.id, received_at=row.received_at)
                jobs.append(Job(data, stored, load.key_of(row.id), load.attempt))
            event(Batch(event.path, jobs), opened)
            store.loads.record(load, LoadVerdict())
            day = load.rows[0].received_at.date()
            report(LoadReport(load.id, {day: Tally(len(jobs))}, 0.0, load.attempt))
            summary = Summary(summary.loads + 1, summary.tally + Tally(len(jobs)))
        connection.close()
        return summary


blacksmith = Blacksmith(
    sources=[airport],
    destinations=[warehouse, alerts, desk],
    gateway=PlainGateway(),
    scheduler=PlainScheduler(),
)

"""An S3 protocol server on loopback that fails a seeded share of its requests, as a process of its own.

python s3_server.py       prints its port; POST /faults {"share": 0.1, "seed": 0, "kinds": [...], "methods": ["PUT"]}
                          sets what fails from then on, GET /faults counts what failed.
"""

import json
import logging
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

STALL = 8.0  # seconds: longer than the client waits
CONDITIONS = ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")
CODES = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied", "501": "Not Implemented"}
KINDS = ("500", "503", "reset", "lost reply")


class Faults:
    """The server's application, with faults before and after it."""

    def __init__(self, application: Any) -> None:
        self.application, self.lock = application, threading.Lock()
        self.rules: dict[str, Any] = {"share": 0.0, "kinds": KINDS}
        self.random, self.done = random.Random(0), Counter[str]()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/faults":
            return self.control(environ, start_response)
        kind = self.choose(environ)
        if kind == "conditions":  # as servers do that have never heard of them
            environ = {name: value for name, value in environ.items() if name not in CONDITIONS}
        if kind in (None, "conditions"):
            return self.application(environ, start_response)  # type: ignore[no-any-return]
        if kind == "size":
            return self.shortened(environ, start_response)
        if kind in CODES:
            code = CODES[kind]
            start_response(f"{kind} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()]
        if kind == "lost reply":  # what was asked for is done, and nobody hears of it
            list(self.application(environ, lambda *_: None))
        elif kind == "stall":
            time.sleep(STALL)
        self.reset(environ["werkzeug.socket"])
        raise ConnectionResetError(kind)

    def shortened(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The answer, as if the object had a third less; of what is no object, such as a listing, the whole answer."""
        told: list[Any] = []
        body = b"".join(self.application(environ, lambda *given: told.extend(given)))
        status, headers = told[0], dict(told[1])
        of_object = environ["REQUEST_METHOD"] in ("GET", "HEAD") and "list-type" not in environ["QUERY_STRING"]
        if of_object and status.startswith("20"):
            length = int(headers.get("Content-Length", len(body))) * 2 // 3
            body, headers["Content-Length"] = body[:length], str(length)
        start_response(status, list(headers.items()))
        return [body]

    def choose(self, environ: dict[str, Any]) -> str | None:
        """The fault of this request, if it has one."""
        with self.lock:
            rules = self.rules
            fits = environ["REQUEST_METHOD"] in rules.get("methods", environ["REQUEST_METHOD"])
            fits &= rules.get("path", "") in environ["PATH_INFO"]
            if (
                not fits
                or self.random.random() >= rules["share"]
                or sum(self.done.values()) >= rules.get("most", 10**9)
            ):
                return None
            kind: str = self.random.choice(list(rules["kinds"]))
            self.done[kind] += 1
            return kind

    def control(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Read or set what fails."""
        with self.lock:
            if environ["REQUEST_METHOD"] == "POST":
                told = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                self.rules = {"share": 0.0, "kinds": KINDS, **told}
                self.random, self.done = random.Random(told.get("seed", 0)), Counter()
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.done).encode()]

    @staticmethod
    def reset(connection: socket.socket) -> None:
        """End a connection with RST, in the middle of what was said."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def main() -> None:
    """Serve until killed."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, Faults(DomainDispatcherApplication(create_backend_app)), threaded=True)
    server.log = lambda *_: None  # type: ignore[method-assign]
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

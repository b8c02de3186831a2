"""Somebody who is told: a receiver of webhooks on this machine, as its owner would write it."""

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes, ok").decode()
OTHER = "whsec_" + base64.b64encode(b"another secret of 32 bytes, yes.").decode()


@dataclass
class Heard:
    """One POST: its headers, what the library made of it, and where it went."""

    id: str
    type: str
    data: dict[str, Any]
    path: str
    timestamp: int

    @property
    def told(self) -> tuple[str, str, str]:
        """As history.py judges it: what, of which job or batch, and the message's id."""
        return self.type, self.data.get("id") or self.data["ticket"], self.id


class Receiver:
    """Listens on loopback; what it answers is ``answer(path)``, a status and perhaps headers.

    Every signature is checked by the library ``standardwebhooks``; one that it refuses is kept in
    ``refused``. ``hears`` is called before the answer goes out. With ``hang`` it answers a byte a
    second until that is set.
    """

    def __init__(
        self,
        answer: Callable[[str], int | tuple[int, dict[str, str]]] = lambda path: 204,
        *,
        secret: str = SECRET,
        port: int = 0,
        hears: Callable[[Heard], None] = lambda heard: None,
    ) -> None:
        self.answer = answer
        self.heard: list[Heard] = []
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.hang: threading.Event | None = None
        check = Webhook(secret)
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", -1))
                data = self.rfile.read(max(0, length))
                if len(data) != length:
                    self.close_connection = True
                    return  # its sender was killed in the middle: nothing was told
                body = data.decode()
                receiver.asked.append(self.headers["Host"])
                if receiver.hang is not None:
                    with contextlib.suppress(OSError):
                        for byte in b"HTTP/1.1 204 No Content\r\n" * 1000:
                            self.wfile.write(bytes([byte]))
                            self.wfile.flush()
                            if receiver.hang.wait(1.0):
                                return
                    return
                said = receiver.answer(self.path)
                status, headers = said if isinstance(said, tuple) else (said, {})
                if status < 300:
                    try:
                        check.verify(body, dict(self.headers))
                    except Exception as error:
                        receiver.refused.append(repr(error))
                    told = json.loads(body)
                    at = int(self.headers["webhook-timestamp"])
                    id_ = self.headers["webhook-id"]
                    heard = Heard(id_, told["type"], told["data"], self.path, at)
                    hears(heard)
                    receiver.heard.append(heard)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        http.server.ThreadingHTTPServer.daemon_threads = True
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self._thread.start()

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """What was heard."""
        return [each.told for each in self.heard]

    def close(self) -> None:
        if self.hang is not None:
            self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

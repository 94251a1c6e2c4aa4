"""A small OpenAI-compatible server as a command: python fake_server.py PORT [SECONDS] [CODE].

Of the standard library alone. It says its seed and its environment variable FAKE. With SECONDS it answers only after
that long; with CODE it ends then.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({"object": "list", "data": [{"id": "m", "max_model_len": 500}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "die" in json.dumps(body.get("messages")):
            os._exit(9)
        text = f"{os.environ.get('FAKE')} {body.get('seed')}"
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        self.reply({"choices": [{"message": message, "text": text, "finish_reason": "stop"}], "usage": usage})

    def reply(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, flush=True)


def main(port: str, seconds: str = "0", code: str = "") -> None:
    print("arguments", json.dumps(sys.argv[1:]), flush=True)
    time.sleep(float(seconds))
    if code:
        print("no memory left", flush=True)
        sys.exit(int(code))
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

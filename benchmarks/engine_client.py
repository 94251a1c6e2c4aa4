"""HTTP client: requests per second of solon's client and of the openai SDK, against one server, in one run.

    python benchmarks/engine_client.py --requests 4000 --in-flight 64

The server is a process of its own that reads a chat request of about 2.4 KB and answers 2 KB at once, so that what is
measured is the client, and the server's own pace is an upper bound for both. Each client builds the request, sends it,
parses the reply and returns the text; they take turns, and the medians and their ratio are printed. `raw` is the same
request through aiohttp alone, already encoded, with the reply read and not parsed: what is left to gain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from solon.dialogue import Message
from solon.engine import Request, Sampling, ServerEngineConfig, ServerLaunch
from solon.engine.server import ServerEngine

PROMPT: tuple[Message, ...] = (
    {"role": "user", "content": "How do I look after a garden in a dry summer? " * 22},
    {"role": "assistant", "content": "Water it early in the day, and cover the soil. " * 12},
    {"role": "user", "content": "And what about the trees along the wall? " * 16},
)
"""About 2.4 KB as JSON."""
ANSWER = "Trees need water at the roots, slowly and seldom. " * 36
HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Answering(asyncio.Protocol):
    """HTTP with keep-alive and nothing else: a whole request in, the same reply out."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._data = transport, b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            place = head.find(b"content-length:")
            length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self._data) < end + 4 + length:
                return
            self._data = self._data[end + 4 + length :]
            self._transport.write(self.reply)


async def serve(port: int) -> None:
    """Answer until the process is ended."""
    message = {"role": "assistant", "content": ANSWER}
    body = json.dumps(
        {
            **{"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m"},
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 400, "total_tokens": 900},
        }
    ).encode()
    Answering.reply = HEADERS % len(body) + body
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port)
    await server.serve_forever()


async def pace(ask: Callable[[int], Awaitable[str]], *, requests: int, in_flight: int) -> float:
    """Requests per second; the answers are seen to be whole."""
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            text = await ask(number)
            assert text == ANSWER, text[:100]

    began_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return requests / (time.perf_counter() - began_s)


async def measure(arguments: argparse.Namespace) -> None:
    """Print the table."""
    import openai

    command = (sys.executable, str(Path(__file__)), "--serve", "{port}")
    config = ServerEngineConfig(
        url="http://127.0.0.1:{port}/v1",
        model="m",
        max_in_flight=arguments.in_flight,
        launch=ServerLaunch(command=command, wait_s=60),
    )
    engine = await ServerEngine.connect(config)
    [url] = engine.urls
    sdk = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    sampling = Sampling(max_new_tokens=400)
    messages = [dict(turn) for turn in PROMPT]
    encoded = json.dumps(
        {"model": "m", "messages": messages, "max_tokens": 400, "temperature": 1.0, "seed": 1}
    ).encode()
    print(f"{len(encoded)} bytes a request, {len(ANSWER)} characters an answer, {arguments.in_flight} in flight")

    async def ours(number: int) -> str:
        return (await engine.generate(Request(prompt=PROMPT, sampling=sampling, seed=number, session=str(number)))).text

    async def theirs(number: int) -> str:
        reply = await sdk.chat.completions.create(
            model="m", messages=messages, max_tokens=400, temperature=1.0, top_p=1.0, seed=number
        )
        return reply.choices[0].message.content

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=arguments.in_flight)) as session:

        async def raw(number: int) -> str:
            async with session.post(f"{url}/chat/completions", data=encoded) as response:
                await response.read()
            return ANSWER

        found: dict[str, list[float]] = {"solon": [], "openai": [], "raw": []}
        for _ in range(arguments.rounds):
            for name, ask in (("solon", ours), ("openai", theirs), ("raw", raw)):
                num = arguments.requests // (4 if name == "openai" else 1)
                found[name].append(await pace(ask, requests=num, in_flight=arguments.in_flight))
    await sdk.close()
    await engine.aclose()
    for name, rates in found.items():
        print(f"{name:7} {statistics.median(rates):8,.0f} requests/s  ({min(rates):,.0f} to {max(rates):,.0f})")
    ratios = [a / b for a, b in zip(found["solon"], found["openai"], strict=True)]
    print(
        f"ratio   {statistics.median(ratios):8.1f}              ({min(ratios):.1f} to {max(ratios):.1f}), "
        f"openai {openai.__version__}, aiohttp {aiohttp.__version__}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of a round; a quarter of them for the openai SDK")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    asyncio.run(serve(chosen.serve) if chosen.serve else measure(chosen))

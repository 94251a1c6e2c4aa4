"""HTTP to the replicas of a server: parsed JSON or an EngineError, with retries.

    wire = Wire(session, ["http://localhost:8000/v1"], settings=config, key=None)
    reply = await wire.post("/completions", {"model": "m", "prompt": "Hello"}, chain="row 17")

Timeouts, broken connections, 408, 429 and 5xx are tried again, with waits that double, or as long as Retry-After says.
The API key stands in the session's headers only: in no message, log or file.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import aiohttp

from solon.engine import ServerEngineConfig
from solon.engine.replicas import Replica, Replicas
from solon.engine.replies import error_of
from solon.errors import EngineError

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0


class Trouble(NamedTuple):
    """Why one attempt failed."""

    error: EngineError
    transient: bool
    """Whether another attempt may succeed."""
    busy: bool
    """Whether the server has too much to do."""
    retry_after_s: float | None


class Wire:
    """The replicas of one server, and the way to them."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        *,
        settings: ServerEngineConfig,
        key: str | None,
        its_end: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`its_end` says how a server ended that was started for this, or None."""
        self._session, self._settings, self._key, self._its_end = session, settings, key, its_end
        self.replicas = Replicas([url.rstrip("/") for url in urls], most=settings.max_in_flight)

    @property
    def url(self) -> str:
        """Of the first replica."""
        return self.replicas.all[0].url

    async def post(
        self, path: str, body: dict[str, Any], *, chain: str | None = None, retries: int | None = None
    ) -> object:
        """The reply to `body`; requests of a `chain` go to one replica. `path` "/../x" stands beside the base URL.

        Raises EngineError: "context-length", "rate-limit", "timeout", "connection", "server-error", "refused",
        "unauthorised", "no-model", "bad-reply".
        """
        retries = self._settings.retries if retries is None else min(retries, self._settings.retries)
        for attempt in range(retries + 1):
            replica = await self.replicas.enter(chain)
            asked_s = time.monotonic()
            try:
                result = await self._once("POST", replica.url, path, body)
            finally:
                replica.leave()
            if not isinstance(result, Trouble):
                replica.answered()
                return result
            _learn(replica, result, asked_s=asked_s)
            if not result.transient or attempt == retries:
                raise self.clean(result.error)
            await asyncio.sleep(_wait_s(attempt, result.retry_after_s))
        raise AssertionError("the last attempt returns or raises")

    async def get(self, path: str) -> object:
        """The parsed reply of the first replica, or the trouble that the only attempt met."""
        return await self._once("GET", self.url, path)

    async def _once(self, method: str, url: str, path: str, body: dict[str, Any] | None = None) -> object:
        if path.startswith("/.."):
            url, path = url.removesuffix("/v1"), path.removeprefix("/..")
        try:
            async with self._session.request(method, url + path, json=body) as response:
                data = await response.read()
                if response.status != 200:
                    status, retry_after_s = response.status, _retry_after_s(response)
                    busy = status == 429 or (status == 503 and retry_after_s is not None)
                    transient = busy or status == 408 or status >= 500
                    return Trouble(error_of(status, data.decode(errors="replace")), transient, busy, retry_after_s)
                return json.loads(data)
        except TimeoutError:
            what = f"no answer from {url} within {self._settings.timeout_s:g} s"
            return Trouble(EngineError(what, reason="timeout"), True, False, None)
        except aiohttp.ClientError as error:
            what = f"the connection to {url} failed: {error or type(error).__name__}"
            if end := self._its_end():
                what += f"; {end}"
            return Trouble(EngineError(what, reason="connection"), True, False, None)
        except ValueError:
            what = f"the reply of {url}{path} is not JSON"
            return Trouble(EngineError(what, reason="bad-reply"), True, False, None)

    def clean(self, error: EngineError) -> EngineError:
        """The error without the key, should the server have repeated it."""
        return EngineError(str(error).replace(self._key, "***"), reason=error.reason) if self._key else error


def _learn(replica: Replica, trouble: Trouble, *, asked_s: float) -> None:
    if trouble.busy:
        rest_s = min(_LONGEST_WAIT_S, trouble.retry_after_s or 0.0)
        replica.slow_down(asked_s=asked_s, rest_s=rest_s)
    elif trouble.transient:
        replica.failed()
    else:
        replica.answered()


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _wait_s(attempt: int, retry_after_s: float | None) -> float:
    """What the server asked for, else twice as long each time, spread so that clients do not return together."""
    if retry_after_s is not None:
        return min(_LONGEST_WAIT_S, retry_after_s)
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0)

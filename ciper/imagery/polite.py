"""How servers are asked: seldom, with patience, and not again where the answer is final."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ciper.errors import AccessRefusedError, ImageryError

# "No imagery there": of no content, of a tile that does not exist or no longer does.
_MISSING = frozenset({204, 404, 410})
_REFUSED = frozenset({401, 403, 407})
# What may be better a little later.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 120.0


@dataclass(frozen=True)
class Manners:
    """How often and how patiently.

    Attributes:
        rate_per_s: requests that may start in a second.
        num_connections: at a time.
        num_attempts: for one address.
        timeout_s: without a byte from the server.
    """

    rate_per_s: float = 4.0
    num_connections: int = 2
    num_attempts: int = 5
    timeout_s: float = 30.0


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        status: of HTTP.
        body: whole and unpacked.
        content_type: as the server names it.
        retry_after_s: how long it asks to be left alone; None if it does not say.
    """

    status: int
    body: bytes
    content_type: str = ""
    retry_after_s: float | None = None


class RequestFailedError(Exception):
    """No whole answer came back. `is_final`: another attempt would fare no better."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class UnusableReplyError(Exception):
    """A server says that all is well and sends something else than what was asked."""


class StoppedError(Exception):
    """The fetch ends while this thread was waiting."""


class Transport(Protocol):
    """Asks once."""

    def get(self, url: str) -> Reply:
        """The answer.

        Raises:
            RequestFailedError: no whole answer came back.
        """


class Clock:
    """Time, and waiting that can be cut short from another thread."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def now(self) -> float:
        """Seconds since some start."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait.

        Raises:
            StoppedError: `stop` was called.
        """
        if self._stopped.wait(max(seconds, 0.0)):
            raise StoppedError

    def stop(self) -> None:
        """End all waiting, now and from now on."""
        self._stopped.set()


class Throttle:
    """Lets requests of all threads start at equal distances."""

    def __init__(self, rate_per_s: float, clock: Clock) -> None:
        """Start with a free slot."""
        self._step_s = 1.0 / rate_per_s
        self._clock = clock
        self._next = clock.now()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Take the next slot and wait for it."""
        with self._lock:
            now = self._clock.now()
            start = max(now, self._next)
            self._next = start + self._step_s
        self._clock.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """No slot before so many seconds have passed: who is in trouble is left alone by all."""
        with self._lock:
            self._next = max(self._next, self._clock.now() + seconds)


class Client:
    """Asks for addresses until there is an answer that counts. Safe for threads."""

    def __init__(
        self,
        transport: Transport,
        manners: Manners,
        *,
        hide: Callable[[str], str],
        clock: Clock | None = None,
    ) -> None:
        """Ask nothing yet; `hide` takes the keys out of what errors say."""
        self.clock = clock or Clock()
        self._transport = transport
        self._manners = manners
        self._hide = hide
        self._throttle = Throttle(manners.rate_per_s, self.clock)

    def get(self, url: str, check: Callable[[Reply], None]) -> bytes | None:
        """The body, None where the server has nothing.

        Args:
            url: with keys.
            check: raises UnusableReplyError if an answer is not of the kind that was asked.

        Raises:
            AccessRefusedError: the server refuses.
            ImageryError: it answers with an error that stays, or with nothing usable in the end.
            StoppedError: the fetch ends.
        """
        reason = ""
        for attempt in range(self._manners.num_attempts):
            self._throttle.wait()
            wait_s = None
            try:
                reply = self._transport.get(url)
                if reply.status in _MISSING:
                    return None
                if reply.status == 200:
                    check(reply)
                    return reply.body
                reason, wait_s = self._refusal(url, reply), reply.retry_after_s
            except RequestFailedError as error:
                reason = str(error)
                if error.is_final:
                    break
            except UnusableReplyError as error:
                reason = self._hide(str(error))
            self._throttle.pause(self._pause_s(url, attempt, wait_s))
        raise ImageryError(
            f"{self._hide(url)}: {reason} ({attempt + 1} attempts); expected an answer that can be "
            "used. Try the address in a browser; the same command goes on where it stopped, more "
            "gently with a lower --rate"
        )

    def _refusal(self, url: str, reply: Reply) -> str:
        """Why to ask again.

        Raises:
            AccessRefusedError: the server refuses.
            ImageryError: there is no point in asking again.
        """
        where, said = self._hide(url), self._hide(excerpt(reply))
        if reply.status in _REFUSED:
            raise AccessRefusedError(
                f"{where}: the server refuses with status {reply.status}{said}; expected to be let "
                "in. Check the key (write it as ${NAME} and set that variable), whether it is for "
                "this layer and place, and the source's terms"
            )
        if reply.status not in _TRANSIENT:
            raise ImageryError(
                f"{where}: the server answers with status {reply.status}{said}; expected 200. "
                "Check --source and --zoom"
            )
        return f"status {reply.status}{said}"

    def _pause_s(self, url: str, attempt: int, retry_after_s: float | None) -> float:
        """Seconds until the next attempt: what the server says, else doubled every time.

        Raises:
            ImageryError: the server says more than anybody waits for.
        """
        if attempt + 1 == self._manners.num_attempts:
            return 0.0
        # Half as much again at random, so that those who were cut off together do not come back
        # together; a function of the address, so that runs repeat.
        jitter = 1.0 + 0.5 * random.Random(f"{self._hide(url)} {attempt}").random()
        wait_s = min(_FIRST_WAIT_S * 2.0**attempt * jitter, _LONGEST_WAIT_S)
        if retry_after_s is None:
            return wait_s
        if retry_after_s > _LONGEST_WAIT_S:
            raise ImageryError(
                f"{self._hide(url)}: the server asks to come back in {retry_after_s:,.0f} s; "
                "expected a wait of seconds. The same command goes on then where it stopped"
            )
        return max(wait_s, retry_after_s)


def excerpt(reply: Reply) -> str:
    """The first words of what a server says in an error, in parentheses; empty if it is no text."""
    if not re.search(r"text|json|xml", reply.content_type, re.IGNORECASE):
        return ""
    text = reply.body[:4096].decode("utf-8", "replace")
    text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text)
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f" ({words[:120]})" if words else ""

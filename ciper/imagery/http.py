"""One request for an address. The only file here that knows the HTTP library."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import (
    HTTPError,
    InvalidHeader,
    LocationValueError,
    MaxRetryError,
    SSLError,
)

import ciper
from ciper.imagery.polite import Reply, RequestFailedError

USER_AGENT = f"ciper/{ciper.__version__} (fetches aerial imagery for cross-view localization)"
# No tile and no page of a catalogue is as large; an address of something else may be.
_MAX_BYTES = 64 * 2**20
_LOGGERS = (
    "urllib3.connectionpool",
    "urllib3.poolmanager",
    "urllib3.connection",
    "urllib3.util.retry",
)
# Only redirections are followed here: when to ask again is decided with all other requests in view.
_NO_RETRIES = Retry(total=None, connect=0, read=0, other=0, status=0, redirect=5)


class HttpTransport:
    """Connections to servers, kept open and shared by threads.

    While it is open, the library's log shows addresses without keys.
    """

    def __init__(
        self, num_connections: int, *, timeout_s: float, hide: Callable[[str], str]
    ) -> None:
        """Connect to nothing yet.

        Args:
            num_connections: to one server at a time.
            timeout_s: without a byte from the server.
            hide: takes the keys out of a text.
        """
        self._options: dict[str, Any] = {
            "num_pools": 8,
            "maxsize": num_connections,
            "block": True,
            "headers": {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"},
            "timeout": Timeout(connect=min(timeout_s, 10.0), read=timeout_s),
            "retries": _NO_RETRIES,
        }
        self._hide = hide
        self._direct = PoolManager(**self._options)
        self._proxies: dict[str, ProxyManager] = {}
        self._loggers = [logging.getLogger(name) for name in _LOGGERS]

    def __enter__(self) -> Self:
        for logger in self._loggers:
            logger.addFilter(self._redact)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for logger in self._loggers:
            logger.removeFilter(self._redact)
        for pool in (self._direct, *self._proxies.values()):
            pool.clear()

    def get(self, url: str) -> Reply:
        """Ask once; redirections are followed.

        Raises:
            RequestFailedError: no whole answer came back.
        """
        try:
            with self._pool(url).request("GET", url, preload_content=False) as response:
                body = response.read(_MAX_BYTES + 1)
                # Empties the connection, and finds out whether the body was cut short.
                if len(body) <= _MAX_BYTES:
                    body += response.read()
                headers = response.headers
                return Reply(
                    status=response.status,
                    body=body,
                    content_type=headers.get("Content-Type", ""),
                    retry_after_s=_retry_after_s(headers.get("Retry-After")),
                )
        except HTTPError as error:
            cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
            is_final = isinstance(cause, SSLError | LocationValueError)
            reason = self._hide(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
            raise RequestFailedError(reason, is_final=is_final) from None

    def _pool(self, url: str) -> PoolManager:
        parts = urlsplit(url)
        proxy = getproxies().get(parts.scheme)
        if proxy is None or proxy_bypass(parts.hostname or ""):
            return self._direct
        if proxy not in self._proxies:
            self._proxies[proxy] = ProxyManager(proxy, **self._options)
        return self._proxies[proxy]

    def _redact(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._hide(record.getMessage()), ()
        return True


def _retry_after_s(header: str | None) -> float | None:
    """Seconds to wait, from a header with seconds or with a date; None if it says nothing."""
    if header is None:
        return None
    try:
        return _NO_RETRIES.parse_retry_after(header)
    except InvalidHeader:
        return None

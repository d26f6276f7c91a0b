"""A PostgreSQL connection that survives a restart of the server; its messages hold no password."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from basis_search.errors import BadInput
from basis_search.workers.redaction import redacted, redacted_url

if TYPE_CHECKING:
    import psycopg

CONNECT: dict[str, Any] = {
    "connect_timeout": 10,
    "application_name": "basis_search",
    "keepalives_idle": 10,  # a server that lost its power is noticed within half a minute
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
MAX_AWAY_SECONDS = 60.0
"""Seconds for which a server that answered before may be away."""

T = TypeVar("T")


class Retries:
    """Pauses between tries of a storage that does not answer, MAX_AWAY_SECONDS in all."""

    def __init__(self, name: str):
        self._name, self._pause, self._deadline = name, 0.1, time.monotonic() + MAX_AWAY_SECONDS

    def pause(self, reason: str) -> None:
        """Waits before the next try; raises BadInput once MAX_AWAY_SECONDS are over."""
        if time.monotonic() > self._deadline:
            raise BadInput(
                f"{self._name} has not answered for {MAX_AWAY_SECONDS:.0f} s ({reason}); what was evaluated is kept, "
                "and the same command goes on from there"
            ) from None
        if self._pause == 0.1:
            print(f"{self._name} does not answer; trying for {MAX_AWAY_SECONDS:.0f} s", file=sys.stderr)
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, 2.0)


class Database:
    """A connection to one database, opened when first used and again after the server was away.

    Args:
        url: postgresql://user:password@host:port/database.

    Raises:
        BadInput: the URL is invalid, the driver is missing, or no server answers.
    """

    def __init__(self, url: str):
        self.url, self.name = url, redacted_url(url)
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.RLock()  # one transaction at a time: heartbeats come from another thread
        self._answered = False
        self.transaction(lambda cursor: None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is connected to anew in another process."""
        return Database, (self.url,)

    def transaction(self, work: Callable[[psycopg.Cursor[Any]], T]) -> T:
        """work(cursor) in one transaction, durable on return; repeated if the server goes away meanwhile.

        `work` may therefore run twice, the first time with or without effect.

        Raises:
            BadInput: the server does not answer, its disk is full, or it refuses us.
        """
        psycopg = self._driver()
        retries = Retries(self.name)
        with self._lock:
            while True:
                try:
                    connection = self._connected()
                    with connection.transaction(), connection.cursor() as cursor:
                        result = work(cursor)
                    self._answered = True
                    return result
                except psycopg.errors.DiskFull as problem:
                    raise BadInput(
                        f"{self.name} cannot store more: its disk is full; free space there, then give the same command"
                    ) from problem
                except psycopg.OperationalError as problem:
                    self._drop()
                    if not self._answered:  # it never did: a wrong name or port, not a restart
                        raise BadInput(f"the storage {self.name} cannot be reached: {self._reason(problem)}") from None
                    retries.pause(self._reason(problem))
                except psycopg.Error as problem:
                    raise BadInput(f"the storage {self.name} refused the request: {self._reason(problem)}") from None

    @contextlib.contextmanager
    def exclusive(self, section: str) -> Iterator[None]:
        """Excludes other processes from a section of this database; ends with the connection at the latest."""
        with self._lock:
            self.transaction(lambda c: c.execute("SELECT pg_advisory_lock(hashtext(%s))", (f"basis_search {section}",)))
            try:
                yield
            finally:
                self.transaction(
                    lambda c: c.execute("SELECT pg_advisory_unlock(hashtext(%s))", (f"basis_search {section}",))
                )

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            url = "postgresql://" + self.url.partition("://")[2]
            self._connection = self._driver().connect(url, autocommit=True, **CONNECT)
        return self._connection

    def _driver(self) -> Any:
        try:
            import psycopg
        except ImportError as problem:
            raise BadInput(f"{self.name} needs psycopg: pip install 'basis_search[postgres]'") from problem
        return psycopg

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _reason(self, problem: BaseException) -> str:
        text = redacted(str(problem), self.url).strip()
        return text.splitlines()[0] if text else repr(problem)

"""Storage of optuna studies: a journal file, a PostgreSQL database, or optuna's gRPC proxy in front of either.

A storage is named by a path, `postgresql://user:password@host:port/database` or `grpc://host:port`. The command line
takes URLs from the environment only; messages and files show them without the password.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import urllib.parse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages.journal import JournalFileBackend

from basis_search.errors import BadInput
from basis_search.files import append_line
from basis_search.workers import postgres
from basis_search.workers.redaction import redacted, redacted_url

ENVIRONMENT = "BASIS_SEARCH_STORAGE"
SCHEMES = ("postgresql", "postgres", "grpc")
CONNECT_SECONDS = 10.0

T = TypeVar("T")
Location = str | Path
_open: dict[str, optuna.storages.BaseStorage] = {}


def is_url(location: Location | None) -> bool:
    """Whether it is a URL and not a path."""
    return isinstance(location, str) and "://" in location


def is_database(location: Location | None) -> bool:
    """Whether it is a PostgreSQL database, which stores evaluations and leases as well as studies."""
    return is_url(location) and _scheme(str(location)) in ("postgresql", "postgres")


def resolve(configured: str | None, default: Path) -> Location:
    """The storage to use: the environment's, else the config's, else the journal `default`.

    Raises:
        BadInput: the config names a URL, which would be saved with it; two storages are named.
    """
    named = os.environ.get(ENVIRONMENT) or None
    if configured is not None and is_url(configured):
        raise BadInput(
            f"storage={redacted_url(configured)} would be saved with the run's config; put the URL into the "
            f"environment variable {ENVIRONMENT} instead"
        )
    if named is not None and configured is not None:
        raise BadInput(f"storage={configured} and {ENVIRONMENT}={redacted_url(named)} both name a storage; drop one")
    return named or configured or default


def open_storage(location: Location) -> optuna.storages.BaseStorage:
    """optuna's storage at a location; opened once per process, as opening a journal reads all of it.

    Raises:
        BadInput: it cannot be reached or written; the message names it without its password.
    """
    key = str(location) if is_url(location) else str(Path(location).resolve())
    if key not in _open:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            _open[key] = _opened(location, key)
    return _open[key]


def _opened(location: Location, key: str) -> optuna.storages.BaseStorage:
    if not is_url(location):
        try:
            return optuna.storages.JournalStorage(Journal(key))
        except OSError as problem:
            raise BadInput(
                f"the journal {key} cannot be opened: {problem.strerror}; name another with storage=FILE"
            ) from problem
        except (ValueError, KeyError, TypeError) as problem:
            raise BadInput(
                f"the journal {key} is damaged ({problem!r}); delete it while no worker runs: samplers start anew, and "
                "no evaluation is lost"
            ) from problem
    scheme = _scheme(str(location))
    if scheme == "grpc":
        return _grpc(str(location))
    if scheme not in SCHEMES:
        raise BadInput(
            f"there is no storage {scheme}://; use a file, postgresql://user:password@host/database or grpc://host:port"
        )
    return _postgresql(str(location))


class Journal(JournalFileBackend):
    """optuna's journal file, with a lock that ends with its process; a last line cut off by a crash is dropped.

    Lines are not synced to disk: they only inform samplers; the evaluation log, which is synced, holds the results.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends each as a line of JSON, all in one write."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        append_line(Path(self._path), data, durable=False)


def _scheme(url: str) -> str:
    return url.partition("://")[0].partition("+")[0].lower()


def _postgresql(url: str) -> optuna.storages.BaseStorage:
    store = postgres.Database(url)  # raises BadInput for a wrong URL
    import sqlalchemy

    rest = url.partition("://")[2]
    try:
        with store.exclusive("optuna's tables"):  # workers that create them at the same time would collide
            return optuna.storages.RDBStorage(
                f"postgresql+psycopg://{rest}",
                engine_kwargs={
                    "pool_size": 1,
                    "max_overflow": 1,
                    "pool_pre_ping": True,  # reconnects to a restarted server
                    # The last trials may be lost with the server's power; evaluations are committed synchronously.
                    "connect_args": {**postgres.CONNECT, "options": "-c synchronous_commit=off"},
                },
            )
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as problem:
        raise BadInput(f"{redacted_url(url)} cannot be used: {_reason(problem, url)}") from None
    except RuntimeError as problem:
        raise BadInput(
            f"{redacted_url(url)} holds tables of another optuna than {optuna.__version__}: install the same optuna, "
            "run `optuna storage upgrade`, or name another database"
        ) from problem
    finally:
        store.close()


def _grpc(url: str) -> optuna.storages.BaseStorage:
    parts = urllib.parse.urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise BadInput(f"{redacted_url(url)} names no host and port; write grpc://host:13000")
    try:
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=port)
        proxy.wait_server_ready(timeout=CONNECT_SECONDS)
    except ImportError as problem:
        raise BadInput(f"{redacted_url(url)} needs grpcio: pip install 'basis_search[grpc]'") from problem
    except ConnectionError as problem:
        raise BadInput(
            f"no gRPC proxy answers at {redacted_url(url)} within {CONNECT_SECONDS:.0f} s; start one with "
            "`basis-search storage-proxy`, or check host and port"
        ) from problem
    return proxy


def serve(location: Location, host: str, port: int, starts: Callable[[str], None]) -> None:
    """Runs optuna's gRPC proxy in front of a storage until Ctrl-C or SIGTERM.

    The proxy has no access control: anybody who reaches the port can read and write the studies.

    Args:
        location: the storage behind the proxy.
        host, port: where it listens; port 0 picks a free one.
        starts: called with the proxy's URL.

    Raises:
        BadInput: the storage cannot be used, grpcio is missing, or the port is taken.
    """
    if is_url(location) and _scheme(str(location)) == "grpc":
        raise BadInput(f"{redacted_url(location)} is a proxy already; name the storage behind it")
    storage = open_storage(location)
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        except OSError as problem:
            raise BadInput(
                f"{host}:{port} cannot be listened on: {problem.strerror}; name another with --host and --port"
            ) from problem
        port = probe.getsockname()[1]
    with contextlib.suppress(ValueError):  # not the main thread, which handles signals
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
            signal.signal(number, signal.default_int_handler)
    starts(f"grpc://{host}:{port}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.run_grpc_proxy_server(storage, host=host, port=port)
    except ImportError as problem:
        raise BadInput("the proxy needs grpcio: pip install 'basis_search[grpc]'") from problem
    except KeyboardInterrupt:
        return


def retry_while_away(call: Callable[[], T], location: Location | None) -> T:
    """call(), retried while its storage is away, for postgres.MAX_AWAY_SECONDS in all.

    Raises:
        BadInput: the storage stays away, or its disk is full.
    """
    if location is None:
        return call()
    retries = postgres.Retries(redacted_url(location))
    while True:
        try:
            return call()
        except _failures(location) as problem:
            if isinstance(problem, OSError):  # of a journal: waiting frees no space
                raise BadInput(
                    f"the journal {location} cannot be written: {problem.strerror}; free space or name another"
                ) from problem
            retries.pause(_reason(problem, str(location)))


def _failures(location: Location) -> tuple[type[Exception], ...]:
    """Exceptions by which a storage shows that it is away."""
    if not is_url(location):
        return (OSError,)
    if _scheme(str(location)) == "grpc":
        from grpc import RpcError

        return (RpcError,)
    import sqlalchemy

    return (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, optuna.exceptions.StorageInternalError)


def _reason(problem: BaseException, url: str) -> str:
    """The first line of the driver's message, without the password."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    origin: Any = getattr(problem, "orig", None) or problem
    return (redacted(str(origin), url).strip() or repr(origin)).splitlines()[0]

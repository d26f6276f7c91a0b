"""Where optuna's studies live: a journal file, a PostgreSQL database, or optuna's gRPC proxy in front of either.

A storage is named by a path, `postgresql://user:password@host:port/database` or `grpc://host:port`. URLs come from the
environment and stay there: whatever is printed or written names them without their password.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
from basis_search.workers import postgres

ENVIRONMENT = "BASIS_SEARCH_STORAGE"
SCHEMES = ("postgresql", "postgres", "grpc")
CONNECT_SECONDS = 10.0

T = TypeVar("T")
Location = str | Path
_open: dict[str, optuna.storages.BaseStorage] = {}


def is_url(location: Location | None) -> bool:
    return isinstance(location, str) and "://" in location


def is_database(location: Location | None) -> bool:
    """Whether evaluations and claims can live in it as well as studies."""
    return is_url(location) and _scheme(str(location)) in ("postgresql", "postgres")


def resolve(configured: str | None, default: Path) -> Location:
    """The storage to use: of the environment, else of the config, else the journal `default`.

    Raises:
        BadInput: the config names a URL, which would be saved with it; two storages are named.
    """
    named = os.environ.get(ENVIRONMENT) or None
    if configured is not None and is_url(configured):
        raise BadInput(
            f"storage={redacted(configured)} would be saved with the run's config; put the URL into the environment "
            f"variable {ENVIRONMENT} instead"
        )
    if named is not None and configured is not None:
        raise BadInput(f"storage={configured} and {ENVIRONMENT}={redacted(named)} both name a storage; drop one")
    return named or configured or default


def redacted(location: Location) -> str:
    """The same without any password, for messages."""
    if not is_url(location):
        return str(location)
    return postgres.redacted(str(location))


def open_storage(location: Location) -> optuna.storages.BaseStorage:
    """optuna's storage there; one per place and process, as opening a journal reads it whole.

    Raises:
        BadInput: it cannot be reached or written, which one and why; the sentence holds no password.
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
                f"the journal {key} is damaged ({problem!r}); delete it while no worker runs: samplers begin anew, and "
                "what was evaluated is in the record"
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
    """optuna's journal file with a lock that dies with its holder, and whose last line, if a crash cut it, is dropped.

    Not synced line by line: it guides samplers; what was evaluated is in the record, which is.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends each as one line of JSON, all in one piece."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                size = os.pread(descriptor, size, 0).rfind(b"\n") + 1
                os.ftruncate(descriptor, size)
            try:
                if os.write(descriptor, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def _scheme(url: str) -> str:
    return url.partition("://")[0].partition("+")[0].lower()


def _postgresql(url: str) -> optuna.storages.BaseStorage:
    store = postgres.Database(url)  # says first, and in a sentence, what is wrong with the URL
    import sqlalchemy

    rest = url.partition("://")[2]
    try:
        with store.alone("optuna's tables"):  # two workers that make them at once would collide
            return optuna.storages.RDBStorage(
                f"postgresql+psycopg://{rest}",
                engine_kwargs={
                    "pool_size": 1,
                    "max_overflow": 1,
                    "pool_pre_ping": True,  # a server that was started again is a new connection, not an error
                    # What guides the sampler may lose its last moments with the server; the record does not.
                    "connect_args": {**postgres.CONNECT, "options": "-c synchronous_commit=off"},
                },
            )
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as problem:
        raise BadInput(f"{redacted(url)} cannot be used: {_reason(problem, url)}") from None
    except RuntimeError as problem:
        raise BadInput(
            f"{redacted(url)} holds tables of another optuna than {optuna.__version__} here: install the same optuna, "
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
        raise BadInput(f"{redacted(url)} names no host and port; write grpc://host:13000")
    try:
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=port)
        proxy.wait_server_ready(timeout=CONNECT_SECONDS)
    except ImportError as problem:
        raise BadInput(f"{redacted(url)} needs grpcio: pip install 'basis_search[grpc]'") from problem
    except ConnectionError as problem:
        raise BadInput(
            f"no gRPC proxy answers at {redacted(url)} within {CONNECT_SECONDS:.0f} s; start one with "
            "`basis-search storage-proxy`, or check host and port"
        ) from problem
    return proxy


def serve(location: Location, host: str, port: int, starts: Callable[[str], None]) -> None:
    """optuna's gRPC proxy in front of a storage, until Ctrl-C or SIGTERM; `starts` is told its address.

    Whoever reaches the port reads and writes the studies: keep it within a network that you trust.

    Raises:
        BadInput: the storage cannot be used, grpcio is missing, or the port is taken.
    """
    if is_url(location) and _scheme(str(location)) == "grpc":
        raise BadInput(f"{redacted(location)} is a proxy already; name what lies behind it")
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
    with contextlib.suppress(ValueError):  # not the main thread: whoever runs us ends it
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs are born deaf to SIGINT
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
    """call(), again and again while its storage is away, for database.PATIENCE seconds in all.

    Raises:
        BadInput: the storage stayed away, or its disk is full.
    """
    if location is None:
        return call()
    away = postgres.Away(redacted(location))
    while True:
        try:
            return call()
        except _failures(location) as problem:
            if isinstance(problem, OSError):  # of a journal: waiting does not make room
                raise BadInput(
                    f"the journal {location} cannot be written: {problem.strerror}; free space or name another"
                ) from problem
            away.pause(_reason(problem, str(location)))


def _failures(location: Location) -> tuple[type[Exception], ...]:
    if not is_url(location):
        return (OSError,)
    if _scheme(str(location)) == "grpc":
        from grpc import RpcError

        return (RpcError,)
    import sqlalchemy

    return (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, optuna.exceptions.StorageInternalError)


def _reason(problem: BaseException, url: str) -> str:
    """The first line of what went wrong below, without the password."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    origin: Any = getattr(problem, "orig", None) or problem
    return postgres.without_password(str(origin).strip().splitlines()[0] if str(origin) else repr(origin), url)

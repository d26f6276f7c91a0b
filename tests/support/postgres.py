"""A temporary PostgreSQL server for tests: Debian's programs, a free port, a separate folder and user."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

PASSWORD = "s3cret/with:odd@signs"


def binaries() -> Path | None:
    """Where initdb and postgres are; Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


class Server:
    """Started by `start`, stopped by `stop`, by its own process id; `kill` is what a loss of power looks like to it."""

    def __init__(self) -> None:
        programs = binaries()
        assert programs is not None
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="basis_search-postgres-"))
        self.user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if os.getuid() == 0:
            account = pwd.getpwnam(self.user)  # PostgreSQL refuses to run as root
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", str(self.data), "-U", "search", "-A", "scram-sha-256", "--pwfile", str(secret), "-N")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql://search:{urllib.parse.quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        log = (self.folder / "log").open("ab")
        command = [str(self.programs / "postgres"), "-D", str(self.data), "-p", str(self.port),
                   "-c", f"unix_socket_directories={self.folder}", "-c", "listen_addresses=127.0.0.1",
                   # Processes are killed here, never the machine: what the system has is as good as on disk, and far
                   # faster on a disk that others use.
                   "-c", "fsync=off"]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user())
        log.close()
        import psycopg

        for _ in range(600):
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        self._end(signal.SIGINT)  # PostgreSQL's "fast": it ends its sessions

    def kill(self) -> None:
        """kill -9 of the server and of all its sessions."""
        assert self._process is not None
        pid = self._process.pid
        sessions = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        self._end(signal.SIGKILL)
        for session in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, database: str) -> str:
        """An empty database; returns its URL."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.programs / program), *arguments], capture_output=True, text=True, **self._as_user()
        )
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}: {done.stdout}{done.stderr}")

    def _as_user(self) -> dict[str, object]:
        return {"user": self.user, "group": self.user, "cwd": self.folder} if os.getuid() == 0 else {"cwd": self.folder}


def main(command: list[str]) -> int:
    """Runs a command with BASIS_SEARCH_STORAGE naming a server of its own; ends with the command's status."""
    server = Server()
    try:
        server.start()
        return subprocess.run(command, env={**os.environ, "BASIS_SEARCH_STORAGE": server.url()}).returncode
    finally:
        server.remove()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

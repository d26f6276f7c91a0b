"""A SLURM of one node for tests: munged, slurmctld and slurmd in a temporary folder, stopped by process id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What this machine lacks to be a SLURM of one node."""
    lacking = [p for p in PROGRAMS if shutil.which(p, path=_path()) is None]
    return lacking if os.getuid() == 0 else [*lacking, "the rights of root"]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Slurm:
    """Runs from `start` to `stop`; `environment` is what sbatch and its like need."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="basis_search-slurm-"))
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        folder = self.folder
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        text = CONFIG.format(host=socket.gethostname(), ports=_free_ports(2), folder=folder, cpus=os.cpu_count())
        (folder / "slurm.conf").write_text(text.lstrip())
        self._run("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
                  f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
                  f"--seed-file={folder}/munge.seed")  # fmt: skip
        self._wait(lambda: (folder / "munge.socket").exists())
        self._run("slurmctld", "-D", "-i")
        self._run("slurmd", "-D")
        self._wait(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"))

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *command: str) -> str:
        found = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return found.stdout + found.stderr

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def _run(self, program: str, *arguments: str) -> None:
        found = shutil.which(program, path=_path())
        assert found is not None
        with (self.folder / f"{program}.out.log").open("ab") as log:
            self._processes.append(subprocess.Popen([found, *arguments], env=self.environment, stdout=log, stderr=log))

    def _wait(self, ready: object) -> None:
        assert callable(ready)
        for _ in range(600):
            if ready():
                return
            ended = [p.args for p in self._processes if p.poll() is not None]
            assert not ended, f"{ended} ended\n{self.logs()}"
            time.sleep(0.1)
        raise AssertionError(f"SLURM did not start: {self.ask('sinfo')}\n{self.logs()}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports

"""Runs a Slurm cluster on this machine, with Debian's packages: munged, slurmctld and several slurmd in a separate folder."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from free_ports import free_ports
from launching import skip, wait_for
from processes import USER_ENVIRONMENT

PACKAGES = "munge slurmctld slurmd slurm-client"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel")
CPUS, GPUS = 8, 4
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

# What a site would have, but no cgroups, no accounting, hardware that is believed, and short waits.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdPidFile={root}/slurmd.%n.pid
SlurmdLogFile={root}/slurmd.%n.log
SlurmdSpoolDir={root}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=30
SlurmdTimeout=10
MinJobAge=3600
CompleteWait=0
ReturnToService=2
PropagateResourceLimits=NONE
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def require_slurm():
    """Skips the test if Slurm is missing; fails it if REQUIRE_SLURM is set."""
    if missing := [program for program in PROGRAMS if not shutil.which(program, path=PATH)]:
        skip("SLURM", f"no {' '.join(missing)}: apt-get install --no-install-recommends {PACKAGES}")
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode:
        skip("SLURM", "nodes with names of their own need root")


class Cluster:
    """A cluster with nodes `node1`, `node2`, ...

    Args:
        root: the folder of the cluster; a short path, because it contains a socket.
        nodes: how many.
    """

    def __init__(self, root: Path, nodes: int):
        self.root = root
        self.nodes = [f"node{i + 1}" for i in range(nodes)]
        self.environment = {name: value for name, value in USER_ENVIRONMENT.items() if not name.startswith(("SLURM", "LAUNCH_"))}
        self.environment |= {"PATH": PATH, "SLURM_CONF": f"{root}/slurm.conf"}

    def start(self):
        """Starts the daemons, and waits until they are ready."""
        self._write_files()
        munge = self.root / "munge"
        files = [f"--{what}={munge}/{name}" for what, name in (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"))]
        self._run("munged", *files, f"--log-file={self.root}/munged.log", f"--seed-file={munge}/seed")
        self._run("slurmctld", "-c")
        for node in self.nodes:
            self.start_node(node)
        wait_for(lambda: {*self.run("sinfo", "-h", "-N", "-o", "%N", "-t", "idle").split()} == {*self.nodes}, "idle nodes")

    def _write_files(self):
        for name in ("munge", "state", *(f"spool/{node}" for node in self.nodes)):
            (self.root / name).mkdir(parents=True, mode=0o700)
        self.root.chmod(0o755)
        (self.root / "munge").chmod(0o755)
        key = self.root / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        port, *ports = free_ports(1 + len(self.nodes))
        lines = [CONFIGURATION.format(host=socket.gethostname(), port=port, root=self.root)]
        for node, port in zip(self.nodes, ports, strict=True):
            lines.append(
                f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} CoresPerSocket={CPUS} Sockets=1 "
                f"ThreadsPerCore=1 RealMemory=4000 Gres=gpu:{GPUS}\n"
            )
            (self.root / f"{node}.hosts").write_text(Path("/etc/hosts").read_text() + f"\n127.0.0.1 {' '.join(self.nodes)}\n")
        (self.root / "slurm.conf").write_text("".join(lines))
        (self.root / "dev").mkdir()
        for i in range(GPUS):
            (self.root / "dev" / f"nvidia{i}").symlink_to("/dev/null")
        (self.root / "gres.conf").write_text(f"Name=gpu File={self.root}/dev/nvidia[0-{GPUS - 1}]\n")
        (self.root / "plugstack.conf").touch()

    def start_node(self, node):
        """Starts slurmd of a node, with its own host name and hosts file."""
        script = 'hostname "$0" && mount --bind "$1" /etc/hosts && exec slurmd -N "$0"'
        hosts = self.root / f"{node}.hosts"
        self._run("unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script, node, str(hosts))

    def kill_slurmd(self, node):
        """Kills the daemon of a node; its jobs continue."""
        os.kill(int((self.root / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)

    def _run(self, *command):
        subprocess.run(command, env=self.environment, check=True, stdin=subprocess.DEVNULL, timeout=180)

    def run(self, *command, env=None, cwd="/", check=True):
        """Runs a command of Slurm. Returns its output."""
        result = subprocess.run(
            list(map(str, command)),
            env={**self.environment, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert not check or result.returncode == 0, result.stderr
        return result.stdout

    def submit(self, *command, cwd, env=None):
        """Submits a job. Returns it."""
        return Job(self, self.run("sbatch", "--parsable", *command, env=env, cwd=cwd).strip(), Path(cwd))

    def stop(self):
        """Ends all jobs and daemons of this cluster."""
        with contextlib.suppress(subprocess.TimeoutExpired, AssertionError):
            self.run("scancel", "--full", "--signal=KILL", "--user=root", check=False)
            self.run("scancel", "--user=root", check=False)
            wait_for(lambda: not self.run("squeue", "-h", check=False).strip(), "the end of all jobs", timeout=60)
        for file in [*self.root.glob("slurmd.*.pid"), self.root / "slurmctld.pid", self.root / "munge" / "pid"]:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not self._left(), "the end of the daemons", timeout=60)
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self):
        """Returns processes with this cluster's configuration in their environment, or its folder in their command."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                mark = str(self.root).encode()
                if int(path.name) != os.getpid() and (
                    b"SLURM_CONF=" + mark in (path / "environ").read_bytes() or mark + b"/munge" in (path / "cmdline").read_bytes()
                ):
                    found.append(int(path.name))
        return found


class Job:
    """A job of the cluster.

    Args:
        cluster: where it runs.
        number: its id.
        folder: where it was submitted.
    """

    def __init__(self, cluster, number, folder):
        self._cluster, self.number, self.folder = cluster, number, folder

    def show(self, field):
        """Returns a field of `scontrol show job`."""
        text = self._cluster.run("scontrol", "show", "job", "-o", self.number)
        return re.search(rf"(?:^| ){field}=(\S+)", text)[1]

    @property
    def output(self):
        """The output of all attempts."""
        path = self.folder / f"slurm-{self.number}.out"
        return path.read_text() if path.exists() else ""

    def wait_for_attempt(self, attempt, timeout=240):
        """Waits for the first line of an attempt."""
        wait_for(lambda: f"attempt {attempt}," in self.output, f"attempt {attempt} of the job: {self.output}", timeout)

    def end(self, timeout=400):
        """Waits until the job has ended for good. Returns its state."""
        deadline = time.monotonic() + timeout
        while (state := self.show("JobState")) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            assert time.monotonic() < deadline, f"{state}: {self.output}"
            time.sleep(0.2)
        return state

    def signal(self, name, *how):
        """Sends a signal to the job with `scancel`."""
        self._cluster.run("scancel", *how, f"--signal={name}", self.number)

    @property
    def restarts(self):
        """How often the job was requeued."""
        return int(self.show("Restarts"))

"""Starts ranks without a launcher, for tests that set the environment of each rank, or check the exit of each rank."""

import contextlib

from forked import Forked
from free_ports import free_ports
from launching import need
from processes import PROGRAM_ENVIRONMENT, ROOT

from launch.command_line.config import LOOPBACK
from launch.horovod import rendezvous_server
from launch.world import WorldSpec, environment_of

# One thread for each rank, because they share the cores, and a sum's rounding depends on the number of threads.
CPUS = 1


@contextlib.contextmanager
def bare_ranks(size, *command, engine="horovod"):
    """Starts a Python command in several ranks on this machine, and kills the remaining ones at the end."""
    server = _rendezvous(engine)
    world = WorldSpec(
        nodes=1,
        per_node=size,
        run_id="",  # no launcher
        master_addr=LOOPBACK,
        master_port=0,
        addresses=(LOOPBACK,),
        worker_ports=(tuple(free_ports(size)),),
        interfaces=("lo",),
        horovod=server and (LOOPBACK, server.server_address[1]),
    )
    if server:
        rendezvous_server.begin_attempt(server, world)
    base = PROGRAM_ENVIRONMENT
    processes = []
    try:
        for rank in range(size):
            environment = base | environment_of(world, rank, threads=max(1, CPUS // world.per_node), already=base)
            processes.append(Forked(command, cwd=ROOT, env=environment))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        if server:
            server.shutdown()
            server.server_close()


def _rendezvous(engine):
    need(engine)
    return rendezvous_server.serve(LOOPBACK, {LOOPBACK}) if engine == "horovod" else None


def run_ranks(size, *command, engine="horovod", timeout=400):
    """Runs a Python command in several ranks. Returns exit code, standard output and standard error of each."""
    with bare_ranks(size, *command, engine=engine) as processes:
        texts = [process.communicate(timeout) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]

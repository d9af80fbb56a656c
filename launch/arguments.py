"""The launcher's flags: torchrun's names and meanings, checked before anything starts."""

import argparse
import glob
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import exit_codes, world
from launch.errors import LaunchError

DEFAULT_PORT = 29500
LOOPBACK = "127.0.0.1"
CHECKOUT = Path(__file__).parent.parent

DESCRIPTION = "Starts the ranks of a run, shows and keeps their output, ends them together, and says why."
EPILOG = (
    """\
examples:
  python -m launch --nproc-per-node 2 -m recipes.mnist --strategy horovod    two ranks on this machine
  python -m launch --nproc-per-node gpu --max-restarts 3 train.py            one rank for each GPU, started again if they fail
  srun --ntasks-per-node=1 python -m launch --nproc-per-node 4 train.py      in Slurm, which says who is node 0
  python -m launch --nnodes 2 --node-rank 1 --master-addr node0 train.py     by hand, one command for each node

"""
    + exit_codes.HELP
)


@dataclass(frozen=True)
class Plan:
    """What the command line asks for, with every default decided.

    Args:
        command: what each rank executes.
        nodes, node, per_node: how many nodes, which one this is, and ranks on each.
        meeting: host and port where the launchers of several nodes find node 0.
        master_addr, master_port: for the ranks; the port is None where any free one will do.
        named_port: the port was asked for, so that another one will not do.
        run_id: the run's name; None: node 0 decides.
        log_dir: where the ranks' logs are; None: `runs/logs/RUN_ID`.
        shown: the local ranks whose output is shown; None: all.
        max_restarts, monitor_interval, grace, stall_timeout, meeting_timeout: as the flags; times in seconds.
    """

    command: list[str]
    nodes: int
    node: int
    per_node: int
    meeting: tuple[str, int]
    master_addr: str
    master_port: int
    named_port: bool
    run_id: str | None
    log_dir: str | None
    shown: frozenset[int] | None
    max_restarts: int
    monitor_interval: float
    grace: float
    stall_timeout: float | None
    meeting_timeout: float
    dry_run: bool

    @property
    def local(self) -> bool:
        """No other machine takes part: everything stays on the loopback interface."""
        return self.nodes == 1 or self.meeting[0] in ("localhost", LOOPBACK)


class Parser(argparse.ArgumentParser):
    """Answers a wrong flag with one line and exit code 2."""

    def error(self, message):
        raise LaunchError(f"{message} (--help lists the flags)")


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> Plan:
    """Reads the command line; inside an srun step, nodes that are not named come from Slurm.

    Raises:
        LaunchError: if something is wrong: one line, before any rank is started.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.error("a SCRIPT, or -m MODULE, is needed")
    slurm = {} if args.standalone else _slurm(environment)
    if args.nnodes not in (None, slurm.get("nodes")):
        slurm = {}
    nodes = _count("--nnodes", args.nnodes or slurm.get("nodes", "1"))
    node = _node_rank(args.node_rank or slurm.get("node"), nodes)
    if args.standalone and nodes > 1:
        raise LaunchError(f"--standalone is a run on one node. Received: --nnodes {nodes}")
    per_node = _per_node(args.nproc_per_node)
    address, port, named = _master(args, nodes, slurm)
    return Plan(
        command=_command(args),
        nodes=nodes,
        node=node,
        per_node=per_node,
        meeting=_endpoint(args, nodes) or (address, port),
        master_addr=address,
        master_port=port,
        named_port=named,
        run_id=_run_id(args.rdzv_id or slurm.get("run_id")),
        log_dir=args.log_dir,
        shown=_filter(args.local_ranks_filter, per_node),
        max_restarts=args.max_restarts,
        monitor_interval=args.monitor_interval,
        grace=args.grace,
        stall_timeout=args.stall_timeout,
        meeting_timeout=args.rdzv_timeout,
        dry_run=args.dry_run,
    )


def new_run_id() -> str:
    """A name for a run that was given none: when it began, and four letters against coincidence."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def secret(plan: Plan, environment: Mapping[str, str]) -> bytes:
    """The secret that the run's launchers share; empty where no other machine takes part.

    Raises:
        LaunchError: if there is none and the run spans hosts.
    """
    found = environment.get(world.SECRET, "")
    if not found and not plan.local:
        raise LaunchError(
            f"A run on several nodes needs {world.SECRET}, the same random text on each: "
            f"export {world.SECRET}=$(openssl rand -hex 16) once, and pass it on."
        )
    return found.encode()


def cpus() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The names of the visible GPUs: what CUDA_VISIBLE_DEVICES says, or else one number for each device file."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    present = sorted(path.removeprefix("/dev/nvidia") for path in glob.glob("/dev/nvidia[0-9]*"))
    if visible is None:
        return present
    return [name for name in visible.split(",") if name and name != "-1"] if present else []


def _parser():
    parser = Parser(
        prog="python -m launch",
        usage="python -m launch [flags] (-m MODULE | SCRIPT) [ARGS...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def flag(group, name, **options):
        group.add_argument(name, **options)
        if "-" in name[2:]:  # torchrun takes both spellings; --help shows one
            hidden = {**options, "dest": name[2:].replace("-", "_"), "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
            group.add_argument("--" + name[2:].replace("-", "_"), **hidden)

    ranks = parser.add_argument_group("ranks")
    flag(
        ranks,
        "--nproc-per-node",
        default="1",
        metavar="N|auto|gpu|cpu",
        help="ranks on each node (1); auto: one for each GPU, or else core",
    )
    flag(ranks, "--local-ranks-filter", metavar="0,1,...", help="show the output of these local ranks only; logs have all")
    flag(ranks, "--log-dir", metavar="DIR", help="each rank's log, DIR/rank-N.log (runs/logs/RUN_ID)")
    flag(ranks, "--dry-run", action="store_true", help="print rank, host, devices, command and environment; start nothing")
    ranks.add_argument("-m", "--module", action="store_true", help="run a module, as python -m does")
    flag(ranks, "--no-python", action="store_true", help="run SCRIPT as a program of its own, not with Python")

    nodes = parser.add_argument_group("several nodes", "The same command on each; inside srun, Slurm fills in what is not given.")
    flag(nodes, "--standalone", action="store_true", help="one node, on the loopback interface, whatever Slurm says")
    flag(nodes, "--nnodes", metavar="N", help="nodes (1)")
    flag(nodes, "--node-rank", metavar="R", help="this node's number, from 0")
    flag(nodes, "--master-addr", metavar="HOST", help="where node 0 is (127.0.0.1); ranks see it as MASTER_ADDR")
    flag(
        nodes,
        "--master-port",
        metavar="PORT",
        help=f"a port there, for rank 0 (on one node the first free one from {DEFAULT_PORT})",
    )
    flag(nodes, "--rdzv-endpoint", metavar="HOST:PORT", help="where the launchers meet, if not at the two above")
    flag(nodes, "--rdzv-id", metavar="ID", help="the run's name, the same on each node")
    flag(nodes, "--rdzv-timeout", type=_seconds, default=300.0, metavar="S", help="how long the nodes wait for each other (300)")

    failure = parser.add_argument_group("signals and failures")
    flag(
        failure,
        "--max-restarts",
        type=_natural,
        default=0,
        metavar="K",
        help="start all ranks again up to K times without progress in between (0)",
    )
    flag(
        failure,
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="how long ranks may take to save after INT, TERM, USR1 or USR2 (30)",
    )
    flag(
        failure,
        "--stall-timeout",
        type=_seconds,
        metavar="S",
        help="end the run, with all Python stacks, when a rank makes no progress for S seconds (off)",
    )
    flag(
        failure,
        "--monitor-interval",
        type=_seconds,
        default=0.1,
        metavar="S",
        help="how often progress is looked at (0.1); exits are seen at once",
    )

    parser.add_argument("command", nargs="?", metavar="SCRIPT", help="what each rank runs, with -m a module")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS", help="its arguments")
    return parser


def _natural(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is a number from 0. Received: {text}")
    return int(text)


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"is a number of seconds above 0. Received: {text}")
    return value


def _count(flag, text):
    if ":" in text:
        raise LaunchError(f"{flag} is one number; a range, for runs that grow and shrink, is not supported. Received: {text}")
    if not text.isdecimal() or not int(text):
        raise LaunchError(f"{flag} is a number from 1. Received: {text}")
    return int(text)


def _per_node(text):
    if text not in ("auto", "gpu", "cpu"):
        if not text.isdecimal() or not int(text):
            raise LaunchError(f"--nproc-per-node is a number from 1, auto, gpu or cpu. Received: {text}")
        return int(text)
    found = len(gpus(os.environ))
    if text == "gpu" and not found:
        raise LaunchError("--nproc-per-node gpu is one rank for each GPU, and there is none here. Use cpu, auto or a number.")
    return cpus() if text == "cpu" or not found else found


def _node_rank(text, nodes):
    if text is None:
        if nodes > 1:
            raise LaunchError(f"--node-rank is needed with --nnodes {nodes}: 0 to {nodes - 1}, another one on each node.")
        return 0
    if not text.isdecimal() or int(text) >= nodes:
        raise LaunchError(f"--node-rank is below --nnodes, {nodes}, and from 0. Received: {text}")
    return int(text)


def _port(flag, text):
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise LaunchError(f"{flag} is a port, 1 to 65535. Received: {text}")
    return int(text)


def _endpoint(args, nodes):
    if args.rdzv_endpoint is None or args.standalone or nodes == 1:
        return None
    host, colon, port = args.rdzv_endpoint.rpartition(":")
    if not colon:
        return args.rdzv_endpoint, DEFAULT_PORT
    if not host:
        raise LaunchError(f"--rdzv-endpoint is HOST:PORT. Received: {args.rdzv_endpoint}")
    return host, _port("The port of --rdzv-endpoint", port)


def _master(args, nodes, slurm):
    """Address and port for the ranks, and whether the port was asked for: the other nodes rely on one that was not, too."""
    host, port = _endpoint(args, nodes) or (slurm.get("address", LOOPBACK), None)
    if args.master_port is not None:
        port = _port("--master-port", args.master_port)
    if nodes > 1 and host == LOOPBACK and args.master_addr is None and args.rdzv_endpoint is None:
        raise LaunchError(f"--master-addr is needed with --nnodes {nodes}: the name or address of node 0.")
    return args.master_addr or host, port or DEFAULT_PORT, port is not None or nodes > 1


def _run_id(text):
    if text is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise LaunchError(f"--rdzv-id names a folder: letters, digits, dots, dashes and underscores. Received: {text}")
    return text


def _filter(text, per_node):
    if text is None:
        return None
    ranks = text.split(",")
    if not all(rank.isdecimal() and int(rank) < per_node for rank in ranks):
        raise LaunchError(f"--local-ranks-filter is a list of local ranks, 0 to {per_node - 1}. Received: {text}")
    return frozenset(map(int, ranks))


def first_node(nodes: str) -> str:
    """The first name of a list as Slurm writes them: of `node[1-4,7],m2` it is `node1`."""
    return "".join(re.findall(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)[0])


def _slurm(environment):
    """What an srun step says of its nodes; nothing outside of one, where the same variables describe the allocation."""
    if "SLURM_STEP_ID" not in environment or environment.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return {}
    nodes, tasks = environment["SLURM_STEP_NUM_NODES"], environment.get("SLURM_STEP_NUM_TASKS")
    if tasks != nodes:
        raise LaunchError(
            f"In Slurm one launcher runs on each node: srun --ntasks-per-node=1. Received: {tasks} tasks on {nodes} nodes"
        )
    array = environment.get("SLURM_ARRAY_JOB_ID")  # elements of an array differ in their job id, and in this too
    job = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]
    return {
        "nodes": nodes,
        "node": environment["SLURM_NODEID"],
        "address": first_node(environment["SLURM_STEP_NODELIST"]),
        "run_id": f"{job}.{environment.get('SLURM_RESTART_COUNT', '0')}",
    }


def _command(args):
    if args.module and args.no_python:
        raise LaunchError("-m runs a module with Python, --no-python runs without it. Use one of them.")
    if args.no_python:
        program = shutil.which(args.command)
        if program is None:
            raise LaunchError(f"--no-python runs a program, a file that may be executed. Received: {args.command}")
        return [program, *args.args]
    python = [sys.executable, "-u"]  # unbuffered: what a rank printed before it died is in its log
    if args.module:
        _check_module(args.command)
        return [*python, "-m", args.command, *args.args]
    return [*python, _script(args.command), *args.args]


def _script(path):
    found = path if os.path.exists(path) or os.path.isabs(path) else str(CHECKOUT / path)
    if os.path.isdir(found) and not os.path.exists(os.path.join(found, "__main__.py")):
        raise LaunchError(f"A script is a file. Received the folder {path}")
    if not os.path.exists(found):
        raise LaunchError(f"There is no script {path} here, in {os.getcwd()}.")
    return found


def _check_module(name):
    """Looks for a module as the import system does, without importing its parents: they may bring in TensorFlow."""
    path, spec = None, None
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        spec = _find(part, path)
        if spec is None:
            raise LaunchError(f"There is no module {part}. Received: -m {name}")
        path = spec.submodule_search_locations
    if path is not None and _find(f"{name}.__main__", path) is None:
        raise LaunchError(f"-m takes a module, or a package with a __main__. Received the package {name}")


def _find(name, path):
    if not all(part.isidentifier() for part in name.split(".")) or (path is None and "." in name):
        return None
    return next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path)), None)

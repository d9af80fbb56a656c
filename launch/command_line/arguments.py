"""The launcher's flags, with torchrun's names and meanings. They are checked before anything starts."""

import argparse
import os
import re
import resource
from collections.abc import Mapping, Sequence

from launch import console, exit_codes
from launch.command_line import command, numa, slurm
from launch.command_line.config import LOOPBACK, LaunchConfig
from launch.command_line.devices import cpus, gpus
from launch.errors import LaunchError
from launch.limits import RUN_ID

DEFAULT_PORT = 29500
MOST_PER_NODE = 1024  # ranks
MOST_SECONDS = 1e6  # the kernel waits 24 days at most
DESCRIPTORS_OF_A_RANK = 5  # in the agent: output, log, progress and pidfd
DESCRIPTORS_OF_A_NODE = 40

DESCRIPTION = "Starts the ranks of a run, shows and logs their output, ends them together, and reports why they failed."
EPILOG = f"""\
examples:
  python -m launch --nproc-per-node 2 -m recipes.mnist                       two ranks on this machine
  python -m launch --nproc-per-node gpu --max-restarts 3 train.py            one rank per GPU, restarted if one fails
  srun --ntasks-per-node=1 python -m launch --nproc-per-node 4 train.py      in Slurm, which sets node numbers and address
  python -m launch --nnodes 2 --node-rank 1 --master-addr node0 train.py     by hand, one command on each node

{exit_codes.HELP}"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag in one line, with exit code 2."""

    def error(self, message):
        raise LaunchError(f"{message} (--help lists the flags)")


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> LaunchConfig:
    """Parses the command line. Inside an srun step, missing node flags come from Slurm.

    Raises:
        LaunchError: if a flag or Slurm's environment is wrong, before any rank is started.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.error("give a SCRIPT or -m MODULE")
    step = None if args.standalone else slurm.read_step(environment)
    if step and args.nnodes not in (None, str(step.nodes)):
        step = None
    if not (args.standalone or args.nnodes or step) and (idle := slurm.idle_nodes(environment)):
        console.say(
            f"this starts ranks on one node; {idle} of the allocation stay idle. "
            "To use all: srun --ntasks-per-node=1 python -m launch"
        )
    nodes = _count("--nnodes", args.nnodes or str(step.nodes if step else 1))
    node = _node_rank(args.node_rank or (str(step.node) if step else None), nodes)
    if args.standalone and nodes > 1:
        raise LaunchError(f"--standalone runs on one node. Received: --nnodes {nodes}")
    per_node = _per_node(args.nproc_per_node, environment)
    address, port, named = _master(args, nodes, step)
    return LaunchConfig(
        command=command.resolve(args.command, args.args, module=args.module, no_python=args.no_python),
        nodes=nodes,
        node=node,
        per_node=per_node,
        rendezvous=_endpoint(args, nodes) or (address, port),
        master_addr=address,
        master_port=port,
        named_port=named,
        run_id=_run_id(args.rdzv_id or (step.run_id if step else None)),
        log_dir=args.log_dir,
        cores=_cores(args.numa_binding, per_node, environment),
        shown=_filter(args.local_ranks_filter, per_node),
        max_restarts=args.max_restarts,
        monitor_interval=args.monitor_interval,
        grace=args.grace,
        stall_timeout=args.stall_timeout,
        rendezvous_timeout=args.rdzv_timeout,
        dry_run=args.dry_run,
    )


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
        help="ranks on each node (1); auto: one per GPU, or one per core without GPUs",
    )
    flag(
        ranks,
        "--numa-binding",
        choices=numa.MODES,
        help="run each rank on cores near its GPU: all cores of the NUMA node or of its socket, an exclusive share of the node, or "
        "cores that share a cache (off; not measured on a GPU)",
    )
    flag(ranks, "--local-ranks-filter", metavar="0,1,...", help="show only the output of these local ranks; every rank has a log")
    flag(ranks, "--log-dir", metavar="DIR", help="directory of the logs, DIR/rank-N.log (runs/logs/RUN_ID)")
    flag(ranks, "--dry-run", action="store_true", help="print host, devices, command and environment of each rank; start nothing")
    ranks.add_argument("-m", "--module", action="store_true", help="run a module, like python -m")
    flag(ranks, "--no-python", action="store_true", help="run SCRIPT as a program, without Python")

    nodes = parser.add_argument_group("several nodes", "Start the same command on each node. Inside srun, Slurm sets the defaults.")
    flag(nodes, "--standalone", action="store_true", help="one node, on the loopback interface; ignore Slurm")
    flag(nodes, "--nnodes", metavar="N", help="number of nodes (1)")
    flag(nodes, "--node-rank", metavar="R", help="this node's number, from 0")
    flag(nodes, "--master-addr", metavar="HOST", help="host of node 0 (127.0.0.1); ranks get it as MASTER_ADDR")
    flag(
        nodes,
        "--master-port",
        metavar="PORT",
        help=f"a port on that host, for rank 0 (on one node: the first free port from {DEFAULT_PORT})",
    )
    flag(nodes, "--rdzv-endpoint", metavar="HOST:PORT", help="where the launchers meet, if not at the two above")
    flag(nodes, "--rdzv-id", metavar="ID", help="name of the run, the same on each node")
    flag(nodes, "--rdzv-timeout", type=_seconds, default=300.0, metavar="S", help="how long nodes wait for each other (300)")

    failure = parser.add_argument_group("signals and failures")
    flag(
        failure,
        "--max-restarts",
        type=_natural,
        default=0,
        metavar="K",
        help="restart all ranks up to K times without progress in between (0)",
    )
    flag(
        failure,
        "--grace",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="how long ranks may take to save and exit after INT, TERM, USR1 or USR2 (30)",
    )
    flag(
        failure,
        "--stall-timeout",
        type=_seconds,
        metavar="S",
        help="end the run and print all Python stacks if a rank makes no progress for S seconds (off)",
    )
    flag(
        failure,
        "--monitor-interval",
        type=_seconds,
        default=0.1,
        metavar="S",
        help="how often progress is checked (0.1); exits are noticed at once",
    )

    parser.add_argument("command", nargs="?", metavar="SCRIPT", help="what each rank runs; a module with -m")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS", help="its arguments")
    return parser


def _is_number(text):
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _natural(text):
    if not _is_number(text):
        raise argparse.ArgumentTypeError(f"must be a number from 0. Received: {text}")
    return int(text)


def _seconds(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, at most {MOST_SECONDS:g}. Received: {text}")
    return value


def _count(flag, text):
    if ":" in text:
        raise LaunchError(f"{flag} must be one number; ranges, for elastic runs, are not supported. Received: {text}")
    if not _is_number(text) or not int(text):
        raise LaunchError(f"{flag} must be a number from 1. Received: {text}")
    return int(text)


def _per_node(text, environment):
    if text not in ("auto", "gpu", "cpu"):
        if not _is_number(text) or not 0 < int(text) <= MOST_PER_NODE:
            raise LaunchError(f"--nproc-per-node must be a number from 1 to {MOST_PER_NODE}, auto, gpu or cpu. Received: {text}")
        needed, limit = DESCRIPTORS_OF_A_NODE + DESCRIPTORS_OF_A_RANK * int(text), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if needed > limit:
            raise LaunchError(f"--nproc-per-node {text} needs {needed} open files; the limit is {limit}. Run: ulimit -n {needed}")
        return int(text)
    found = len(gpus(environment))
    if text == "gpu" and not found:
        raise LaunchError("--nproc-per-node gpu starts one rank per GPU, and this node has no GPU. Use cpu, auto or a number.")
    return cpus() if text == "cpu" or not found else found


def _cores(mode, per_node, environment):
    if mode is None:
        return None
    visible = gpus(environment)
    if "CUDA_VISIBLE_DEVICES" not in environment:
        visible = [str(number) for number in range(len(visible))]  # CUDA numbers the GPUs that it finds
    return numa.bind(mode, per_node, visible, frozenset(os.sched_getaffinity(0)))


def _node_rank(text, nodes):
    if text is None:
        if nodes > 1:
            raise LaunchError(f"--nnodes {nodes} needs --node-rank: 0 to {nodes - 1}, different on each node.")
        return 0
    if not _is_number(text) or int(text) >= nodes:
        raise LaunchError(f"--node-rank must be a number from 0, below --nnodes {nodes}. Received: {text}")
    return int(text)


def _port(flag, text):
    if not _is_number(text) or not 0 < int(text) < 65536:
        raise LaunchError(f"{flag} must be a number from 1 to 65535. Received: {text}")
    return int(text)


def _endpoint(args, nodes):
    if args.rdzv_endpoint is None or args.standalone or nodes == 1:
        return None
    host, colon, port = args.rdzv_endpoint.rpartition(":")
    if not colon:
        return args.rdzv_endpoint, DEFAULT_PORT
    if not host:
        raise LaunchError(f"--rdzv-endpoint must be HOST:PORT. Received: {args.rdzv_endpoint}")
    return host, _port("The port of --rdzv-endpoint", port)


def _master(args, nodes, step):
    """Returns address and port for the ranks, and whether the port is fixed: other nodes rely on the default too."""
    host, port = _endpoint(args, nodes) or (step.address if step else LOOPBACK, None)
    if args.master_port is not None:
        port = _port("--master-port", args.master_port)
    if nodes > 1 and host == LOOPBACK and args.master_addr is None and args.rdzv_endpoint is None:
        raise LaunchError(f"--nnodes {nodes} needs --master-addr: the name or address of node 0.")
    return args.master_addr or host, port or DEFAULT_PORT, port is not None or nodes > 1


def _run_id(text):
    if text is not None and text not in RUN_ID:
        raise LaunchError(f"--rdzv-id must consist of letters, digits, dots, dashes and underscores. Received: {text}")
    return text


def _filter(text, per_node):
    if text is None:
        return None
    ranks = text.split(",")
    if not all(_is_number(rank) and int(rank) < per_node for rank in ranks):
        raise LaunchError(f"--local-ranks-filter must be a list of local ranks, 0 to {per_node - 1}. Received: {text}")
    return frozenset(map(int, ranks))

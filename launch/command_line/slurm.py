"""Reads the nodes of a run from Slurm's environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launch.errors import LaunchError

_INTERACTIVE_STEP = str(2**32 - 6)  # the shell of salloc, on one node of the allocation


@dataclass(frozen=True)
class SlurmStep:
    """The place of this launcher in an srun step.

    Args:
        nodes: the number of nodes in the step.
        node: the number of this node.
        address: the host name of the first node.
        run_id: the job, its array element, and its number of requeues.
    """

    nodes: int
    node: int
    address: str
    run_id: str


def read_step(environment: Mapping[str, str]) -> SlurmStep | None:
    """Reads the multi-node step that this process belongs to.

    Returns:
        None outside a step, where the same variables describe the allocation, and in a step with one node.

    Raises:
        LaunchError: if the step has several tasks on a node, or if a variable is missing or malformed.
    """
    if "SLURM_STEP_ID" not in environment:
        return None
    nodes = _number(environment, "SLURM_STEP_NUM_NODES", default="1")
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", default=str(nodes))
    if tasks != nodes:
        raise LaunchError(
            f"In Slurm, one launcher must run on each node: srun --ntasks-per-node=1. Received: {tasks} tasks on {nodes} nodes. "
            "To start a separate run in each task: --standalone"
        )
    if nodes == 1:
        return None
    restarts = _number(environment, "SLURM_RESTART_COUNT", default="0")
    if "SLURM_ARRAY_JOB_ID" in environment:  # names the element of an array as squeue shows it
        job = f"{_number(environment, 'SLURM_ARRAY_JOB_ID')}_{_number(environment, 'SLURM_ARRAY_TASK_ID')}"
    else:
        job = str(_number(environment, "SLURM_JOB_ID"))
    return SlurmStep(nodes, _number(environment, "SLURM_NODEID"), first_node(_nodes(environment)), f"{job}.{restarts}")


def idle_nodes(environment: Mapping[str, str]) -> int:
    """Returns the number of allocated nodes that stay idle because srun did not start this command."""
    if "SLURM_STEP_ID" in environment and environment["SLURM_STEP_ID"] != _INTERACTIVE_STEP:
        return 0
    nodes = environment.get("SLURM_JOB_NUM_NODES", environment.get("SLURM_NNODES", "1"))
    return int(nodes) - 1 if nodes.isdecimal() else 0


def first_node(nodes: str) -> str:
    """Returns the first name in a node list of Slurm.

    Example:
        >>> first_node("node[1-4,7],m2")
        'node1'
    """
    return "".join(re.findall(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)[0])


def _nodes(environment):
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if not re.match(r"[A-Za-z0-9]", nodes):
        raise LaunchError(f"SLURM_STEP_NODELIST must be a list of nodes. Received: {nodes!r}. To run without Slurm: --standalone")
    return nodes


def _number(environment, name, default=""):
    text = environment.get(name, default)
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise LaunchError(f"{name} must be a number from 0. Received: {text!r}. To run without Slurm: --standalone")
    return int(text)

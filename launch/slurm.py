"""What Slurm's environment says of the nodes of a run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launch.errors import LaunchError


@dataclass(frozen=True)
class SlurmStep:
    """The place of this launcher in an srun step.

    Args:
        nodes: how many nodes the step has.
        node: which one this is.
        address: the name of the first node.
        run_id: the job, its array element, and how often it was requeued.
    """

    nodes: int
    node: int
    address: str
    run_id: str


def read_step(environment: Mapping[str, str]) -> SlurmStep | None:
    """Reads the step of several nodes that this process belongs to.

    Returns:
        None outside a step, where the same variables describe the allocation, and in a step of one node.

    Raises:
        LaunchError: if the step has several tasks on a node, or a variable is missing or not what Slurm writes.
    """
    if "SLURM_STEP_ID" not in environment or environment.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return None
    nodes = _number(environment, "SLURM_STEP_NUM_NODES")
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS")
    if tasks != nodes:
        raise LaunchError(
            f"In Slurm one launcher runs on each node: srun --ntasks-per-node=1. Received: {tasks} tasks on {nodes} nodes"
        )
    restarts = _number(environment, "SLURM_RESTART_COUNT", default="0")
    if "SLURM_ARRAY_JOB_ID" in environment:  # elements of an array differ in their job id, and in this too
        job = f"{_number(environment, 'SLURM_ARRAY_JOB_ID')}_{_number(environment, 'SLURM_ARRAY_TASK_ID')}"
    else:
        job = str(_number(environment, "SLURM_JOB_ID"))
    return SlurmStep(nodes, _number(environment, "SLURM_NODEID"), first_node(_nodes(environment)), f"{job}.{restarts}")


def first_node(nodes: str) -> str:
    """The first name of a list as Slurm writes them.

    Example:
        >>> first_node("node[1-4,7],m2")
        'node1'
    """
    return "".join(re.findall(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)[0])


def _nodes(environment):
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if not re.match(r"[A-Za-z0-9]", nodes):
        raise LaunchError(f"SLURM_STEP_NODELIST is a list of nodes. Received: {nodes!r}. Without Slurm: --standalone")
    return nodes


def _number(environment, name, default=""):
    text = environment.get(name, default)
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise LaunchError(f"{name} is a number from 0. Received: {text!r}. Without Slurm: --standalone")
    return int(text)

"""The errors of TensorFlow 2.21 and Horovod 0.28 after the SIGKILL of a rank: the message names the rank where they do."""

import pytest

from recipes.common.run.program import lost_rank

_OPERATION = "{{function_node CollectiveReduceV2_device_/job:worker/replica:0/task:0/device:CPU:0}} Collective ops is aborted by: "
_END = "\nThe error could be from a previous operation. Restart your program to reset. [Op:CollectiveReduceV2]"
_CONNECTION = (
    "recvmsg:Connection reset by peer\nAdditional GRPC error information from remote target /job:worker/replica:0/task:1 "
    "while calling /tensorflow.WorkerService/RecvBuf:\n:UNKNOWN:Error received from peer"
)
_HEARTBEATS = (  # from the coordination service
    "Error reported from /job:worker/task:2: The following tasks are unhealthy (stopped sending heartbeats):\n"
    "/job:worker/replica:0/task:1\n/job:worker/replica:0/task:12\nThe tasks have crashed."
)


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        (_OPERATION + _CONNECTION + _END, "rank 1 does not respond"),
        (_OPERATION + _HEARTBEATS + _END, "ranks 1, 12 do not respond"),
        ("Horovod has been shut down. This was caused by an exception on one of the ranks", "another rank has ended"),
    ],
    ids=["connection closed", "no heartbeats", "Horovod"],
)
def test_a_lost_rank_is_named_where_the_error_names_it(message, lost):
    assert lost_rank(message) == lost

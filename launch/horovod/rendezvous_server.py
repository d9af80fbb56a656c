"""Horovod's rendezvous server, where ranks find each other, restricted to a list of addresses.

Requests come from Horovod's C++ code and cannot carry a secret, so the server answers every address that passed the launchers'
handshake. On this host, it answers only processes of this user and of root.
"""

import importlib.util
import socketserver
import sys
import threading
from collections.abc import Collection
from typing import Any

from launch import console
from launch.network.peers import is_trusted
from launch.world import WorldSpec, horovod_host

IDLE = 60.0  # seconds after which an idle connection is closed


def serve(bind: str, allowed: Collection[str]) -> Any:
    """Starts the server in a thread, on a free port.

    Args:
        bind: the address to listen on; empty: all addresses.
        allowed: the addresses that the server answers.

    Returns:
        The server, or None if Horovod is not installed.
    """
    if importlib.util.find_spec("horovod") is None:
        return None
    try:
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer
    except ImportError as error:
        console.say(f"Horovod is installed, but has no rendezvous server: {error}")
        return None

    class Handler(RendezvousHandler):
        timeout = IDLE

        def do_HEAD(self):  # the base class would list files
            self.send_status_code(405)

    class Server(RendezvousHTTPServer):
        daemon_threads = True
        request_queue_size = 1024  # all ranks connect at once

        def server_bind(self):
            socketserver.TCPServer.server_bind(self)  # skips the host name look-up, which may take seconds

        def verify_request(self, request, client_address):
            return client_address[0] in allowed and is_trusted(request)

        def handle_error(self, request, client_address):
            console.say(f"Horovod's rendezvous: a request from {client_address[0]} failed: {sys.exc_info()[1]}")

    server = Server((bind, 0), Handler, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def begin_attempt(server: Any, world: WorldSpec) -> None:
    """Resets the server for the ranks of the next attempt."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments

    hosts = [HostInfo(horovod_host(node), world.per_node) for node in range(world.nodes)]
    server.init(get_host_assignments(hosts, world.world_size))

"""Horovod's rendezvous server, where its ranks find each other, behind a list of the addresses that it answers.

Its requests come from Horovod's C++ side and have no room for a secret: an address that passed the launchers' handshake is let in.
From this host only processes of this user and of root are.
"""

import importlib.util
import socketserver
import sys
import threading
from collections.abc import Collection
from typing import Any

from launch import console
from launch.peers import is_trusted
from launch.world import WorldSpec, horovod_host

IDLE = 60.0  # seconds after which a connection that says nothing is closed


def serve(bind: str, allowed: Collection[str]) -> Any:
    """Starts the server in a thread, on a port that is free.

    Args:
        bind: the address to listen on; empty: all.
        allowed: the addresses that are answered.

    Returns:
        The server, or None where Horovod is not installed.
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

        def do_HEAD(self):  # the base class would tell which files there are
            self.send_status_code(405)

    class Server(RendezvousHTTPServer):
        daemon_threads = True
        request_queue_size = 1024  # all ranks come at once

        def server_bind(self):
            socketserver.TCPServer.server_bind(self)  # without the look-up of a name, which may take seconds

        def verify_request(self, request, client_address):
            return client_address[0] in allowed and is_trusted(request)

        def handle_error(self, request, client_address):
            console.say(f"Horovod's rendezvous: a request from {client_address[0]} failed: {sys.exc_info()[1]}")

    server = Server((bind, 0), Handler, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def begin_attempt(server: Any, world: WorldSpec) -> None:
    """Forgets the ranks of the last attempt, and expects those of the next."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments

    hosts = [HostInfo(horovod_host(node), world.per_node) for node in range(world.nodes)]
    server.init(get_host_assignments(hosts, world.world_size))

"""The servers that are compared. Each starts with its broker, and ends with this process, however that ends."""

import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

START_WAIT = 20
# A process that was killed ends at once, unless the system holds it.
KILL_WAIT = 5


class Server:
    """A running server: the arguments with which `tailwater bench` measures it. `stop` ends all its processes."""

    def __init__(self, tools):
        self.tools, self.children = tools, []
        # A killed process may still write into it.
        self.folder = tempfile.TemporaryDirectory(prefix="tailwater-bench.", ignore_cleanup_errors=True)

    def start(self, *command):
        """Starts a program that prints `ready` and ports, and returns its process id and the ports."""
        child, process = self.spawn(*command, stdout=subprocess.PIPE)
        is_readable, _, _ = select.select([child.stdout], [], [], START_WAIT)
        line = child.stdout.readline().decode() if is_readable else ""
        if not (ready := re.match(r"ready ([\d ]+)$", line)):
            raise RuntimeError(f"{command[0]} did not start: {self.last_words()}")
        return process, *ready[1].split()

    def spawn(self, *command, **pipes):
        """Starts a program below a guard, which kills it when this process has died."""
        guard = [self.tools.tailwater, "guard", "--parent", str(os.getpid()), "--"]
        with open(Path(self.folder.name, "log"), "ab") as log:
            child = subprocess.Popen([*guard, *command], process_group=0, stderr=log, stdin=subprocess.DEVNULL, **pipes)
        self.children.append(child)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        process = until(lambda: child.poll() is not None or children.read_text().split(), f"{command[0]} did not start")
        if process is True:
            raise RuntimeError(f"{command[0]} did not start: {self.last_words()}")
        return child, process[0]

    def last_words(self):
        """The last line that a program wrote to its standard error."""
        lines = Path(self.folder.name, "log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it wrote no reason"

    def start_redis(self):
        """Redis without persistence, on a socket in the file system."""
        path = f"{self.folder.name}/redis"
        options = ["--port", "0", "--unixsocket", path, "--dir", self.folder.name, "--save", "", "--appendonly", "no"]
        _, process = self.spawn(self.tools.redis, *options, stdout=subprocess.DEVNULL)
        until(lambda: Path(path).exists(), "redis-server did not start")
        return path, process

    def stop(self):
        """Kills all its processes, and returns whether they have ended."""
        have_ended = True
        for child in reversed(self.children):
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            try:
                child.wait(KILL_WAIT)
            except subprocess.TimeoutExpired:
                have_ended = False
            if child.stdout:
                child.stdout.close()
        self.folder.cleanup()
        return have_ended


def until(found, otherwise):
    deadline = time.monotonic() + START_WAIT
    while not (value := found()):
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(0.02)
    return value


def at(process, port, publisher=None, broker=None):
    arguments = ["--edge", f"127.0.0.1:{port}", "--edge-pid", process]
    arguments += ["--publish-lines", f"127.0.0.1:{publisher}"] if publisher else []
    return arguments + (["--broker-pid", broker] if broker else [])


def floor(server):
    return at(*server.start(server.tools.floor)) + ["--transport", "ws"]


def socketio(server, mode):
    redis, broker = server.start_redis()
    program = ["node", Path(server.tools.peers, "socketio.mjs")]
    process, port = server.start(*program, "server", mode, redis)
    _, publisher = server.start(*program, "publisher", mode, redis)
    return at(process, port, publisher, broker) + ["--transport", "socketio"]


def resumable_stream(server):
    redis, broker = server.start_redis()
    process, port, publisher = server.start("node", Path(server.tools.peers, "resumable.mjs"), redis)
    return at(process, port, publisher, broker) + ["--transport", "sse"]


def durable_streams(server, durability):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [server.tools.durable_streams, "--port", str(port), "--data-dir", server.folder.name]
    _, process = server.spawn(*command, "--durability", durability, stdout=subprocess.DEVNULL)
    until(lambda: accepts(port), "durable-streams-server did not start")
    return at(process, port) + ["--transport", "durable-streams"]


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

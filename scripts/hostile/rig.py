"""A broker, workers and an edge on the loopback interface, and how much memory the edge uses."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wire import ask, tls_to

HERE = Path(__file__).parent
# The `--memory` of the edge in MiB: the smallest, so that the attacks reach every limit.
MEMORY = 64


class Rig:
    """The processes of one run. `stop` ends all of them, in any state."""

    def __init__(self, program, nats_server, clients):
        self.program, self.nats_server, self.clients = program, nats_server, clients
        self.folder = tempfile.TemporaryDirectory(prefix="tailwater-hostile.")
        self.children, self.broker, self.edge, self.watchers, self.port = [], None, None, None, None
        # What honest and hostile clients of an edge with TLS need; `tls` is None while the edge has none.
        self.tls, self.http2 = None, tls_to("h2")

    def start(self, command, **pipes):
        child = subprocess.Popen(command, process_group=0, **pipes)
        self.children.append(child)
        return child

    def end(self, child):
        """Ends a child with all its processes, and waits for it."""
        if child in self.children:
            self.children.remove(child)
            for sign in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(child.pid, sign)
                except ProcessLookupError:
                    pass
            child.wait(10)

    def stop(self):
        for child in list(reversed(self.children)):
            self.end(child)
        self.folder.cleanup()

    def tailwater(self, *arguments):
        return [self.program, *arguments, *(["--nats", self.url] if arguments[0] != "up" else [])]

    def start_broker(self):
        folder = self.folder.name
        config = Path(folder, "nats.conf")
        config.write_text(f'jetstream: {{store_dir: "{folder}/js"}}\nmax_payload: 1MB\n')
        command = [self.nats_server, "-c", config, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", folder]
        self.broker = self.start(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not (ports := list(Path(folder).glob("*.ports"))) or not ports[0].read_text().strip():
            if time.monotonic() > deadline:
                raise SystemExit("the broker did not start")
            time.sleep(0.05)
        self.url = json.loads(ports[0].read_text())["nats"][0]
        subprocess.run(self.tailwater("setup", "--shards", "4"), check=True, stdout=subprocess.DEVNULL, timeout=30)

    def start_worker(self, kind, *backend, concurrency=64):
        command = [self.program, "worker", "--kind", kind, "--concurrency", str(concurrency), "--nats", self.url, *backend]
        return self.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def certificate(self):
        """The files of a certificate and its key, made when they are first used."""
        cert, key = Path(self.folder.name, "edge.pem"), Path(self.folder.name, "edge.key")
        if not cert.exists():
            new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
            command = [*new.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert]
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        return cert, key

    def edge_with(self, *flags):
        """Starts an edge with these flags. Returns its process and its port."""
        command = self.tailwater("edge", "--listen", "127.0.0.1:0", *flags)
        with open(Path(self.folder.name, "edge.log"), "ab") as log:
            edge = self.start(command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = edge.stdout.readline()
        if not (ready := re.search(r"ready https?://.*:(\d+)", line)):
            raise RuntimeError(f"an edge did not start: {line!r}")
        return edge, int(ready[1])

    def start_edge(self, tls=False):
        """Starts a new edge, so that an attack does not affect the next one."""
        flags = ["--memory", f"{MEMORY}MiB", "--callback-hosts", "hooks.test", "--chat-kind", "parked"]
        self.tls = tls_to("http/1.1") if tls else None
        if tls:
            cert, key = self.certificate()
            flags += ["--tls-cert", cert, "--tls-key", key]
        self.edge, self.port = self.edge_with(*flags)

    def start_watchers(self, jobs):
        tls = "tls" if self.tls else "plain"
        command = [sys.executable, HERE / "watchers.py", str(self.port), tls, str(self.clients), *jobs]
        self.watchers = self.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.watchers.stdout.readline().strip() != "watching":
            raise RuntimeError("the honest clients did not start")

    def delays(self):
        """The measurements of the honest clients since the last call."""
        self.watchers.stdin.write("\n")
        self.watchers.stdin.flush()
        return json.loads(self.watchers.stdout.readline())

    def memory(self):
        """The resident memory of the edge in MiB; 0 if it has ended."""
        try:
            status = Path(f"/proc/{self.edge.pid}/status").read_text()
        except FileNotFoundError:
            return 0
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(resident[1]) / 1024 if resident else 0

    def files(self):
        """How many files and sockets the edge has open; 0 if it has ended."""
        try:
            return len(os.listdir(f"/proc/{self.edge.pid}/fd"))
        except FileNotFoundError:
            return 0

    async def submit(self, kind, value=None, job=None):
        body = {"kind": kind, "input": value} | ({"id": job} if job else {})
        for _ in range(200):
            status, answer = await ask(self.port, "POST", "/api/jobs", body, tls=self.tls)
            if status in (200, 202):
                return answer["id"]
            # A kind is unknown until its worker has declared it.
            await asyncio.sleep(0.1)
        raise RuntimeError(f"a job of kind {kind} was not accepted: {status} {answer}")

    async def cancel(self, job):
        try:
            await ask(self.port, "POST", f"/api/jobs/{job}/cancel", tls=self.tls)
        except (OSError, ValueError, asyncio.TimeoutError):
            # The attack may have ended the edge; the run continues.
            pass

    async def until_done(self, kind, count, seconds=120):
        """Waits until `count` jobs of a kind are done."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, page = 0, ""
            while page is not None:
                status, listing = await ask(self.port, "GET", f"/api/jobs?kind={kind}&status=done&limit=100{page}")
                if status != 200:
                    break
                done += len(listing["jobs"])
                page = f"&page={listing['next']}" if listing.get("next") else None
            if done >= count:
                return
            await asyncio.sleep(0.3)
        raise SystemExit(f"only {done} of {count} jobs of kind {kind} ended in time")

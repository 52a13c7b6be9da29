"""Honest clients on all transports that follow running jobs, and how late each event reaches them.

A separate process, so that an attack does not slow it down. Each line on stdin requests the measurements since the last
line, as a line of JSON. It ends with stdin.
"""

import json
import selectors
import ssl
import sys
import time

from wire import frames, mask, open_socket, open_websocket, request, tls_to

TS = b'"ts":'


class WebSocket:
    """A client of `/ws`."""

    def __init__(self, port, job, tls):
        self.sock, self.buffer = open_websocket(port, tls=tls), bytearray()
        self.send(json.dumps({"op": "watch", "job": job}).encode())

    def send(self, text):
        self.sock.sendall(mask(0x81, text))

    def texts(self):
        """Removes what has arrived completely, and answers pings."""
        for opcode, payload in frames(self.buffer):
            if opcode == 9:
                self.sock.sendall(mask(0x8A, payload))
            else:
                yield payload


class SocketIo(WebSocket):
    """A Socket.IO client."""

    def __init__(self, port, job, tls):
        self.sock, self.buffer = open_websocket(port, "/socket.io/?EIO=4&transport=websocket", tls), bytearray()
        self.send(b"40" + json.dumps({"cursors": {job: None}}).encode())

    def texts(self):
        for payload in super().texts():
            if payload == b"2":
                self.send(b"3")
            yield payload


class EventStream:
    """A stream of server-sent events."""

    def __init__(self, port, job, tls):
        self.sock, self.buffer = open_socket(port, tls), bytearray()
        self.sock.sendall(request("GET", f"/api/jobs/{job}/events"))

    def texts(self):
        lines = self.buffer.split(b"\n")
        self.buffer[:] = lines.pop()
        return lines


def main(port, tls, clients, jobs):
    selector = selectors.DefaultSelector()
    transports = [WebSocket, EventStream, SocketIo]
    for number in range(clients):
        client = transports[number % len(transports)](port, jobs[number // len(transports) % len(jobs)], tls)
        client.sock.setblocking(False)
        selector.register(client.sock, selectors.EVENT_READ, client)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    delays, lost, begun = [], 0, time.time() * 1000
    print("watching", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                if not sys.stdin.readline():
                    return
                delays.sort()
                at = lambda part: round(delays[min(len(delays) - 1, int(len(delays) * part))], 1) if delays else None
                answer = {"events": len(delays), "p50": at(0.5), "p99": at(0.99), "max": at(1.0), "lost": lost}
                print(json.dumps(answer), flush=True)
                delays, lost = [], 0
                continue
            try:
                data = key.fileobj.recv(1 << 18)
            # A record of TLS may be incomplete, or have no data.
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except OSError:
                data = b""
            if not data:
                lost += 1
                selector.unregister(key.fileobj)
                continue
            now = time.time() * 1000
            client = key.data
            client.buffer += data
            for text in client.texts():
                if (at_ts := text.find(TS)) >= 0:
                    end = at_ts + len(TS)
                    number = text[end : end + 14].split(b",")[0].rstrip(b"}]")
                    # Events replayed at the start are always late.
                    if float(number) > begun:
                        delays.append(max(0.0, now - float(number)))


if __name__ == "__main__":
    main(int(sys.argv[1]), tls_to("http/1.1") if sys.argv[2] == "tls" else None, int(sys.argv[3]), sys.argv[4:])

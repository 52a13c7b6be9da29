"""Honest clients: a hundred WebSockets that follow running jobs, and how late each event reaches them.

A separate process, so that an attack does not slow it down. Each line on stdin requests the measurements since the last
line, as a line of JSON. It ends with stdin.
"""

import json
import selectors
import sys
import time

from wire import frames, mask, open_websocket

TS = b'"ts":'


def main(port, clients, jobs):
    selector = selectors.DefaultSelector()
    for number in range(clients):
        sock = open_websocket(port)
        frame = json.dumps({"op": "watch", "job": jobs[number % len(jobs)]})
        sock.sendall(mask(0x81, frame.encode()))
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, bytearray())
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
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                lost += 1
                selector.unregister(key.fileobj)
                continue
            now = time.time() * 1000
            buffer = key.data
            buffer += data
            for opcode, payload in frames(buffer):
                if opcode == 9:
                    key.fileobj.sendall(mask(0x8A, payload))
                elif (at_ts := payload.find(TS)) >= 0:
                    end = at_ts + len(TS)
                    number = payload[end : end + 14].split(b",")[0].rstrip(b"}")
                    # Events replayed at the start are always late.
                    if float(number) > begun:
                        delays.append(max(0.0, now - float(number)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

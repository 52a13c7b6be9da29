"""HTTP and WebSocket as bytes on a socket: hostile clients do what libraries do not allow."""

import asyncio
import json
import re
import socket
import ssl


def mask(head, payload):
    """A client's frame; the mask is zero, so the payload is unchanged."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([head]) + length + b"\0\0\0\0" + payload


def frames(buffer):
    """Removes complete server frames from a buffer. Yields opcode and payload."""
    while len(buffer) >= 2:
        size, start = buffer[1] & 127, 2
        if size == 126:
            if len(buffer) < 4:
                return
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            if len(buffer) < 10:
                return
            size, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start + size:
            return
        opcode, payload = buffer[0] & 15, bytes(buffer[start : start + size])
        del buffer[: start + size]
        yield opcode, payload


def upgrade(path):
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def request(method, path, body=b"", headers="", length=None):
    length = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n"
    return head.encode() + body


JSON = "Content-Type: application/json\r\n"


def tls_to(*protocols):
    """What a client needs for TLS. It trusts every certificate: there is only one edge."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def open_socket(port, tls=None):
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(sock) if tls else sock


def open_websocket(port, path="/ws", tls=None):
    sock = open_socket(port, tls)
    sock.sendall(upgrade(path))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise OSError("no upgrade")
        head += byte
    return sock


class Client:
    """One hostile connection. Its receive buffer is small, so that unread data stays in the edge."""

    def __init__(self, sock):
        self.sock = sock

    @classmethod
    async def connect(cls, port, rcvbuf=4096, tls=None):
        sock = socket.socket()
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port)), 10)
        if tls is None:
            return cls(sock)
        opening = asyncio.open_connection(sock=sock, ssl=tls, server_hostname="localhost", limit=4096)
        return TlsClient(*await asyncio.wait_for(opening, 30))

    async def send(self, data, seconds=30):
        """Returns whether all data was sent in time; False if the connection was cut."""
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, data), seconds)
            return True
        except (OSError, asyncio.TimeoutError):
            return False

    async def read(self, size=65536, seconds=30):
        """The next bytes; empty if the connection has ended, `None` if none arrive in time."""
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, size), seconds)
        except asyncio.TimeoutError:
            return None
        except OSError:
            return b""

    async def head(self, seconds=30):
        """The status of the next response, and its code if it has one. Leaves the rest unread."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = await self.read(2048, seconds)
            if piece is None:
                return "no response"
            if not piece:
                return "cut"
            data += piece
        status = data.split(b" ")[1].decode()
        if status[0] in "45" and b'"code"' not in data:
            data += await self.read(2048, 2) or b""
        code = re.search(rb'"code":"([a-z_0-9]+)"', data)
        return f"{status} {code[1].decode()}" if code else status

    async def websocket(self, path="/ws"):
        await self.send(upgrade(path))
        return await self.head()

    async def whole(self, seconds=10):
        """The status and body of a small response on a connection that stays open."""
        data = b""
        while True:
            piece = await self.read(65536, seconds)
            if not piece:
                return 0, b""
            data += piece
            head, found, body = data.partition(b"\r\n\r\n")
            if not found:
                continue
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            if length and len(body) >= int(length[1]):
                return int(head.split(b" ")[1]), body

    def close(self):
        self.sock.close()


class TlsClient(Client):
    """The same over TLS. The library reads a little ahead."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, data, seconds=30):
        try:
            self.writer.write(data)
            await asyncio.wait_for(self.writer.drain(), seconds)
            return True
        except (OSError, asyncio.TimeoutError):
            return False

    async def read(self, size=65536, seconds=30):
        try:
            return await asyncio.wait_for(self.reader.read(size), seconds)
        except asyncio.TimeoutError:
            return None
        except OSError:
            return b""

    def close(self):
        self.writer.transport.abort()


async def ask(port, method, path, value=None, tls=None):
    """Sends an honest request. Returns status and JSON."""
    client = await Client.connect(port, rcvbuf=None, tls=tls)
    body = b"" if value is None else json.dumps(value).encode()
    await client.send(request(method, path, body, JSON if body else ""))
    status, body = await client.whole()
    client.close()
    return status, json.loads(body or b"null")

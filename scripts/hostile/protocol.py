"""Attacks on the protocols: connections that never get anywhere, frames that are not allowed, and strings with a purpose.

Each requires that the edge refuses what it should. See `attacks.py` for how to add one.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import Counter
from pathlib import Path

from attacks import SOCKET, attack, gather, hold
from wire import JSON, Client, frames, mask, request, upgrade

# The longest that an edge waits for a body, in seconds.
BODY_WAIT = 30
DEPTH = 100_000


def require(holds, what):
    if not holds:
        raise AssertionError(what)


async def drip(rig, count, seconds, start, piece):
    """Connections that send `start`, and then `piece` again and again, with a pause. Returns how they ended."""
    until = time.monotonic() + seconds

    async def one(_):
        client = await Client.connect(rig.port)
        await client.send(start)
        while time.monotonic() < until:
            if not await client.send(piece, 2) or await client.read(64, 1) is not None:
                return "ended"
        return "held"

    seen = await gather(count, one, at_once=count)
    await hold(rig)
    return seen


@attack("half-upgrades", "half of a WebSocket upgrade", full=2000, short=300)
async def half_upgrades(rig, count):
    return await drip(rig, count, 5, upgrade("/ws")[:60], b"")


@attack("half-tls", "a TLS handshake on a port without TLS", full=1000, short=200)
async def half_tls(rig, count):
    hello = bytes.fromhex("1603010200010001fc0303") + secrets.token_bytes(100)
    return await drip(rig, count, 3, hello, b"")


@attack("head-drip", "heads of requests, a byte a second", full=2000, short=300)
async def head_drip(rig, count):
    return await drip(rig, count, 10, b"GET /api/stats HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a")


@attack("large-heads", "heads of 60 KB without their end", full=500, short=100, kib_each=128)
async def large_heads(rig, count):
    return await drip(rig, count, rig.hold, b"GET /api/stats HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 60_000, b"")


@attack("body-drip", "bodies, a byte a second", full=1000, short=200)
async def body_drip(rig, count):
    # A short run ends before the edge refuses to wait any longer.
    seconds = 3 if rig.is_short else BODY_WAIT + 5
    return await drip(rig, count, seconds, request("POST", "/api/jobs", b"{", JSON, 1 << 19), b" ")


async def closed_with(client, seconds=20):
    """The code with which the edge closes a WebSocket."""
    buffer, until = bytearray(), time.monotonic() + seconds
    while time.monotonic() < until:
        piece = await client.read(seconds=2)
        if piece == b"":
            return "cut"
        buffer += piece or b""
        for opcode, payload in frames(buffer):
            if opcode == 8:
                return f"closed {int.from_bytes(payload[:2], 'big')}"
    return "open"


async def sent(rig, data, path="/ws", joins=b""):
    """How a WebSocket ends that sends this."""
    client = await Client.connect(rig.port, rcvbuf=None)
    await client.websocket(path)
    await client.send(joins + data, 20)
    outcome = await closed_with(client)
    client.close()
    return outcome


def length_of(size):
    return bytes([0xFF]) + size.to_bytes(8, "big") + b"\0\0\0\0"


# Frames that no client may send, each with the codes of RFC 6455 that may answer it.
BAD_FRAMES = {
    "reserved bits": (bytes([0xF1]) + mask(0x81, b"x")[1:], "1002"),
    "reserved opcode": (mask(0x83, b"x"), "1002"),
    "reserved control": (mask(0x8B, b"x"), "1002"),
    "no mask": (b"\x81\x02{}", "1002"),
    "split ping": (mask(0x09, b"x"), "1002"),
    "long ping": (mask(0x89, b"x" * 126), "1002"),
    "stray continuation": (mask(0x80, b"x"), "1002"),
    "nested message": (mask(0x01, b"x") + mask(0x81, b"x"), "1002"),
    "half a close code": (mask(0x88, b"\x03"), "1002"),
    "invalid close code": (mask(0x88, b"\x03\xed"), "1002"),
    "invalid text": (mask(0x81, b'{"op":"\xff\xfe"}'), "1007"),
    "invalid text in parts": (mask(0x01, b"\xce") + mask(0x80, b"\xff"), "1007"),
    "4 GB declared": (b"\x82" + length_of(4 << 30), "1009"),
    "2^63 declared": (b"\x82" + length_of(1 << 63), "1009 1002"),
    "100 MB declared": (b"\x82" + length_of(100 << 20), "1009"),
}


@attack("bad-frames", "frames that WebSocket clients must not send", full=100, short=5)
async def bad_frames(rig, count):
    async def one(number):
        name, (data, codes) = list(BAD_FRAMES.items())[number % len(BAD_FRAMES)]
        outcome = await sent(rig, data)
        # The edge may close the connection before its client has read the code.
        allowed = ["cut", *(f"closed {code}" for code in codes.split())]
        require(outcome in allowed, f"{name}: {outcome}")
        return outcome

    return await gather(count * len(BAD_FRAMES), one, at_once=20)


@attack("large-frame", "a frame of 100 MB over each WebSocket", full=20, short=4)
async def large_frame(rig, count):
    async def one(number):
        path, joins = [("/ws", b""), (SOCKET, mask(0x81, b"40"))][number % 2]
        outcome = await sent(rig, mask(0x82, b" " * (100 << 20)), path, joins)
        require(outcome != "open", "a frame of 100 MB was accepted")
        return outcome

    return await gather(count, one, at_once=2)


@attack("fragments", "messages of a million empty or tiny parts", full=40, short=6)
async def fragments(rig, count):
    async def one(number):
        piece = [mask(0x00, b""), mask(0x00, b" "), mask(0x00, b"") + mask(0x89, b"")][number % 3]
        client = await Client.connect(rig.port)
        await client.websocket()
        await client.send(mask(0x01, b" "))
        for _ in range(200):
            if not await client.send(piece * 5000, 1):
                return "not read or cut"
        return "read all the time"

    return await gather(count, one, at_once=count)


def bombs():
    """Small messages that are large or deep once they are decoded, as JSON and as MessagePack."""
    deep_json = b"[" * DEPTH + b"]" * DEPTH
    submit = b'{"op":"submit","ref":"r","kind":"demo","input":%s}'
    maps = b'{"a":' * DEPTH + b"1" + b"}" * DEPTH
    yield "json depth", mask(0x81, submit % deep_json)
    yield "json maps", mask(0x81, submit % maps)
    yield "json unclosed", mask(0x81, b"[" * DEPTH * 5)
    yield "json number", mask(0x81, submit % (b"1" * 400_000))
    yield "json exponent", mask(0x81, submit % b"1e999999999")
    yield "msgpack depth", mask(0x82, b"\x91" * DEPTH + b"\xc0")
    yield "msgpack array of 4 billion", mask(0x82, b"\xdd\xff\xff\xff\xff")
    yield "msgpack map of 4 billion", mask(0x82, b"\xdf\xff\xff\xff\xff")
    yield "msgpack string of 4 GB", mask(0x82, b"\xdb\xff\xff\xff\xffx")
    yield "msgpack bytes of 4 GB", mask(0x82, b"\xc6\xff\xff\xff\xffx")
    yield "msgpack extension", mask(0x82, b"\xc9\xff\xff\xff\xff\x01x")


@attack("bombs", "JSON and MessagePack that are deep or declare 4 GB", full=40, short=3)
async def message_bombs(rig, count):
    every = list(bombs())

    async def one(number):
        name, data = every[number % len(every)]
        path = "/ws?encoding=msgpack" if name.startswith("msgpack") else "/ws"
        client = await Client.connect(rig.port, rcvbuf=None)
        await client.websocket(path)
        await client.send(data, 20)
        answer = await client.read(seconds=20)
        require(answer is not None, f"{name}: no answer")
        client.close()
        return "answered" if answer else "cut"

    return await gather(count * len(every), one, at_once=10)


@attack("rest-bombs", "deep JSON over HTTP", full=200, short=10)
async def rest_bombs(rig, count):
    async def one(_):
        client = await Client.connect(rig.port, rcvbuf=None)
        body = b'{"kind":"demo","input":' + b"[" * DEPTH + b"]" * DEPTH + b"}"
        await client.send(request("POST", "/api/jobs", body, JSON))
        answer = await client.head()
        require(answer.startswith(("400", "413", "422")), answer)
        client.close()
        return answer

    # More bodies of this size at once than the budget has room for would be refused for that.
    return await gather(count, one, at_once=10)


@attack("watches", "10,000 watches of one WebSocket", full=10_000, short=2000)
async def watches(rig, count):
    client = await Client.connect(rig.port, rcvbuf=None)
    await client.websocket()
    buffer, seen, answers = bytearray(), Counter(), 0

    async def arrives(seconds):
        """Counts what arrives next. Whether anything did."""
        nonlocal answers
        data = await client.read(1 << 16, seconds)
        buffer.extend(data or b"")
        for opcode, payload in frames(buffer):
            frame = json.loads(payload) if opcode == 1 else {"op": f"opcode {opcode}"}
            answers += frame["op"] in ("watching", "error")
            seen[frame.get("code", frame["op"])] += 1
        return bool(data)

    for start in range(0, count, 200):
        some = (json.dumps({"op": "watch", "job": f"w-{n}"}).encode() for n in range(start, start + 200))
        await client.send(b"".join(mask(0x81, frame) for frame in some))
        while await arrives(0.05):
            pass
    while answers < count and await arrives(30):
        pass
    require(seen["too_many_watches"] > 0 or count <= 1024, f"no watch was refused: {seen}")
    await hold(rig)
    return seen


@attack("connections", "5,000 connections from one address", full=5000, short=1500)
async def connections(rig, count):
    held = []

    async def one(_):
        client = await Client.connect(rig.port)
        held.append(client)
        return await client.websocket()

    seen = await gather(count, one)
    await hold(rig)
    return seen


# Strings for ids, kinds, cursors and tokens: path tricks, wildcards of NATS, separators of other languages.
STRINGS = [
    "..", ".", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "a%00b", "*", ">", "tw.*", "a.b", "a.>", "$JS.API.>", "$SYS",
    "_INBOX.>", "a b", "a%20b", "a%0d%0aX: y", "%0d%0a", "';DROP TABLE jobs;--", "<script>", "${jndi:ldap://x}", "{{7*7}}", "é", "%ff", "%e2%80%ae",
    "a" * 65, "a" * 8000, "-" * 64 + "!", "callback-x.y", "con", "nul", ":", "a:", ":a", "a:b:c", "a:b.c", "a:*", "a%3ab%3ac",
]


@attack("strings", "ids and parameters with paths, wildcards and separators", full=20, short=2)
async def strings(rig, count):
    paths = [
        "/api/jobs/{}", "/api/jobs/{}/state", "/api/jobs/{}/events", "/api/jobs?kind={}", "/api/jobs?page={}", "/api/jobs?status={}",
        f"/api/jobs/{rig.big}/events?cursor={{}}", f"/api/jobs/{rig.big}/events?after={{}}", f"/api/jobs/{rig.big}/events?limit={{}}",
    ]
    every = [(path.format(string)) for path in paths for string in STRINGS]

    async def one(number):
        path = every[number % len(every)]
        client = await Client.connect(rig.port, rcvbuf=None)
        raw = path.replace(" ", "%20").encode("utf-8", "surrogateescape")
        await client.send(b"GET " + raw + b" HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n")
        data = b""
        while (piece := await client.read(1 << 16, 20)):
            data += piece
        client.close()
        head = data.partition(b"\r\n\r\n")[0]
        status = int((data.split(b" ") + [b"0", b"0"])[1])
        # A listing that finds no place among too many is answered 503.
        require(400 <= status < 500 or status in (200, 503), f"{path}: {status}")
        require(b"\r\nX: y" not in head and b"\nroot:" not in data, f"{path}: {data[:200]!r}")
        return str(status)

    return await gather(count * len(every), one, at_once=20)


# Header values, each with a mark. No response may have a header that begins with the mark.
INJECTED = ["a\r\nX-Injected: 1", "a\nX-Injected: 1", "a\rX-Injected: 1", "a\0b", "a%0d%0aX-Injected:%201", "\u560d\u560aX-Injected: 1"]
ECHOED = ["Origin", "Host", "Accept", "Last-Event-ID", "Sec-WebSocket-Protocol", "Access-Control-Request-Headers", "Access-Control-Request-Method",
          "Idempotency-Key", "X-Request-Id", "Traceparent", "Authorization", "Cookie", "Content-Type", "X-Forwarded-For", "Forwarded"]


# The requests that carry them. Not `GET /api/jobs`: an edge limits what listings cost, so a flood of them waits for minutes.
TARGETS = [("GET", "/api/jobs/none/events?must_exist=true"), ("OPTIONS", "/api/jobs"), ("POST", "/api/jobs")]


@attack("injection", "line breaks in every header that might be echoed", full=20, short=2)
async def injection(rig, count):
    every = [(name, value, *target) for name in ECHOED for value in INJECTED for target in TARGETS]

    async def one(number):
        name, value, method, path = every[number % len(every)]
        host = "" if name == "Host" else "Host: localhost\r\n"
        client = await Client.connect(rig.port, rcvbuf=None)
        head = f"{method} {path} HTTP/1.1\r\n{host}{name}: {value}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        await client.send(head.encode())
        data = b""
        while (piece := await client.read(1 << 16, 20)):
            data += piece
        client.close()
        head = data.partition(b"\r\n\r\n")[0].lower()
        require(head.startswith(b"http/1.1 "), f"{method}, {name}: no answer to {value!r}")
        require(b"\nx-injected" not in head and b"\rx-injected" not in head, f"{name}: {head!r}")
        return head[9:12].decode()

    return await gather(count * len(every), one, at_once=20)


# Addresses of this machine or of the operator's network, in forms that a comparison of texts does not see. The edge of this run allows
# callbacks to `hooks.test` only.
CALLBACKS = [
    "http://localhost/", "http://LOCALHOST./", "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/",
    "http://0/", "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[0:0:0:0:0:ffff:7f00:1]/", "http://[fe80::1%25eth0]/",
    "http://[::127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://hooks.test@127.0.0.1/", "http://127.0.0.1#@hooks.test/",
    "http://127.0.0.1?@hooks.test/", "http://127.0.0.1\\@hooks.test/", "http://hooks.test.evil.example/", "http://evilhooks.test/",
    "http://hooks.test:22/", "http://hooks.test%2eevil.example/", "file:///etc/passwd", "gopher://hooks.test/",
    "ftp://hooks.test/", "javascript:alert(1)", "//hooks.test/", "http:hooks.test", "http://１２７.0.0.1/", "http://hooks。test.evil.example/",
    "http://hooks.test\r\nX: y/", "http://\thooks.test.evil/",
]


@attack("callbacks", "callback addresses that mean this machine", full=20, short=2)
async def callbacks(rig, count):
    every = CALLBACKS

    async def one(number):
        url = every[number % len(every)]
        client = await Client.connect(rig.port, rcvbuf=None)
        body = json.dumps({"kind": "demo", "input": {"words": 1}, "callback": url}).encode()
        await client.send(request("POST", "/api/jobs", body, JSON))
        answer = await client.head()
        client.close()
        require(answer in ("400 bad_request", "422 callback_not_allowed"), f"{url}: {answer}")
        return answer

    return await gather(count * len(every), one, at_once=20)


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def jwt(head, claims, sign):
    message = b".".join(base64url(json.dumps(part).encode()) for part in (head, claims))
    return (message + b"." + base64url(sign(message))).decode()


def hs256(secret):
    return lambda message: hmac.digest(secret, message, "sha256")


def rs256(key):
    """Signs with an RSA key in DER (PKCS #1): its integers are a version, the modulus and the two exponents, first the public one."""
    numbers, at = [], 4
    while at < len(key):
        size, at = key[at + 1], at + 2
        if size & 0x80:
            more = size & 0x7F
            size, at = int.from_bytes(key[at : at + more], "big"), at + more
        numbers.append(int.from_bytes(key[at : at + size], "big"))
        at += size
    _, modulus, _, exponent = numbers[:4]
    length = (modulus.bit_length() + 7) // 8

    def sign(message):
        digest = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(message).digest()
        padded = b"\0\1" + b"\xff" * (length - len(digest) - 3) + b"\0" + digest
        return pow(int.from_bytes(padded, "big"), exponent, modulus).to_bytes(length, "big")

    return sign


# Ids of keys that are paths, addresses and queries.
KIDS = ["../../../../dev/null", "/dev/null", "file:///dev/null", "http://127.0.0.1:1/keys", "rsa' UNION SELECT 'x", "rsa\0", "RSA", ""]
SECRET = b"a secret of the hostile run with more than 32 bytes"


def forged_tokens(claims, key, rsa):
    """Tokens that an edge must refuse. `rsa` signs with the key of the issuer, whose public part is in `key`."""
    now, pem = claims["iat"], key["public_pem"].encode()
    with_claims = lambda **changes: jwt({"alg": "HS256"}, claims | changes, hs256(SECRET))
    without = lambda name: jwt({"alg": "HS256"}, {k: v for k, v in claims.items() if k != name}, hs256(SECRET))
    for name in ("none", "None", "NONE"):
        yield f"alg {name}", jwt({"alg": name}, claims, lambda _: b"")
    for secret in (pem, pem.strip(), key["n"].encode(), base64.urlsafe_b64decode(key["n"] + "==")):
        yield "public key as a secret", jwt({"alg": "HS256", "kid": "rsa"}, claims, hs256(secret))
    yield "HS256 called RS256", jwt({"alg": "RS256", "kid": "rsa"}, claims, hs256(SECRET))
    yield "RS256 called HS256", jwt({"alg": "HS256", "kid": "rsa"}, claims, rsa)
    for kid in KIDS:
        yield f"kid {kid!r} of a secret", jwt({"alg": "HS256", "kid": kid}, claims, hs256(b""))
        yield f"kid {kid!r} of a public key", jwt({"alg": "RS256", "kid": kid}, claims, rsa)
    for field in ("jku", "x5u"):
        yield field, jwt({"alg": "HS256", field: "http://127.0.0.1:1/keys"}, claims, hs256(b"x"))
    yield "jwk", jwt({"alg": "HS256", "jwk": {"kty": "oct", "k": "eA"}}, claims, hs256(b"x"))
    yield "another secret", jwt({"alg": "HS256"}, claims, hs256(SECRET[1:]))
    head, _, tag = jwt({"alg": "HS256"}, claims, hs256(SECRET)).split(".")
    payload = base64url(json.dumps(claims | {"sub": "b"}).encode()).decode()
    yield "other claims", f"{head}.{payload}.{tag}"
    yield "expired", with_claims(exp=now - 1)
    yield "not yet valid", with_claims(nbf=now + 600)
    yield "issued in the future", with_claims(iat=now + 600)
    yield "another audience", with_claims(aud="another")
    yield "another issuer", with_claims(iss="another")
    for name in ("aud", "iss", "exp", "sub"):
        yield f"no {name}", without(name)
    yield "unknown grants", with_claims(tailwater={"everything": True})


def checked_edge(rig, key):
    """Starts an edge that checks tokens. Returns its process and its port."""
    folder = Path(rig.folder.name)
    public = {"kty": "RSA", "kid": "rsa", "use": "sig", "n": key["n"], "e": key["e"]}
    (folder / "keys.json").write_text(json.dumps({"keys": [public]}))
    (folder / "secret").write_bytes(SECRET)
    keys = ["--auth-secret", folder / "secret", "--auth-jwks", folder / "keys.json"]
    expects = ["--auth-issuer", "hostile", "--auth-audience", "tailwater"]
    return rig.edge_with("--auth", "jwt", *keys, *expects)


def with_token(token, job):
    """A request for each way in which a token is sent."""
    offer = f"Sec-WebSocket-Protocol: bearer.{token}, tailwater.v1.json\r\n\r\n".encode()
    yield request("GET", "/api/jobs", headers=f"Authorization: Bearer {token}\r\n")
    yield request("POST", "/api/jobs", b'{"kind":"demo"}', f"{JSON}Authorization: Bearer {token}\r\n")
    yield request("GET", f"/api/jobs/{job}/events", headers=f"Cookie: tailwater_token={token}\r\n")
    yield request("GET", f"/api/jobs/{job}/events?ticket={token}")
    yield upgrade("/ws")[:-2] + offer


async def answer_of(port, data):
    client = await Client.connect(port, rcvbuf=None)
    await client.send(data)
    answer = await client.head()
    client.close()
    return answer


@attack("tokens", "forged tokens and those of other jobs, at an edge that checks them", full=20, short=1)
async def tokens(rig, count):
    key = json.loads((Path(__file__).parents[2] / "tests/cases/auth/rsa.json").read_text())
    rsa = rs256(base64.b64decode(key["pkcs1"]))
    now = int(time.time())
    claims = {"sub": "a", "iss": "hostile", "aud": "tailwater", "iat": now, "exp": now + 600, "tailwater": {"admin": True}}
    edge, port = checked_edge(rig, key)
    try:
        for head, sign in (({"alg": "HS256"}, hs256(SECRET)), ({"alg": "RS256", "kid": "rsa"}, rsa)):
            first = next(with_token(jwt(head, claims, sign), rig.big))
            require(await answer_of(port, first) == "200", f"a valid token was refused: {head}")
        every = [(name, data) for name, token in forged_tokens(claims, key, rsa) for data in with_token(token, rig.big)]

        async def forged(number):
            name, data = every[number % len(every)]
            answer = await answer_of(port, data)
            require(answer in ("401 unauthorized", "401 token_expired"), f"{name}: {answer}")
            return answer

        seen = await gather(count * len(every), forged, at_once=20)
        other = jwt({"alg": "HS256"}, claims | {"tailwater": {"watch": ["mine*"], "cancel": ["mine*"]}}, hs256(SECRET))
        own = f"Authorization: Bearer {other}\r\n"
        for method, path in (("GET", "state"), ("GET", "events"), ("POST", "cancel")):
            answer = await answer_of(port, request(method, f"/api/jobs/{rig.big}/{path}", headers=own))
            require(answer == "404 job_not_found", f"{path} of another subject's job: {answer}")
        return seen
    finally:
        rig.end(edge)

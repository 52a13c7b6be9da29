// Follows jobs over Socket.IO with the unmodified official client. The argument is a JSON object:
//   url       the address of the edge
//   clients   [{job, transports?, resume: "auth" | "watch", cuts?, via?}]: one client each; `cuts` times it closes its own
//             connection, after a random number of events; `via` is another address to reach the edge by
//   seed      of the random numbers
//   slow      {for, every, bytes}: for this many ms it reads only `bytes` from its socket every `every` ms
//   patience  after this many ms it reports that it is `stuck`
// Prints one JSON line for each client when its job has ended: what it saw, with the SHA-256 of the text.
//
// The library keeps events of a broken connection and delivers them on the next one, after it has asked
// for `auth`. So a client that resumes by `auth` sees some of them twice; it skips them by their `seq`.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
const { io } = createRequire(new URL("../../.tools/node/", import.meta.url))("socket.io-client");

const { url, clients, seed = 1, slow, patience = 50_000 } = JSON.parse(process.argv[2]);

function randoms(a) {
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function follow({ job, transports, resume, cuts = 0, via }, index) {
  const random = randoms(seed * 1000 + index);
  const seen = { job, doubled: 0, repeated: 0, gaps: 0, missing: 0, text: "", errors: [], transports: [] };
  Object.assign(seen, { connected: 0, refused: 0, disconnects: [], live: 0, events: 0, stray: [] });
  let cursor = null, last = 0, next_cut = cuts > 0 ? 1 + Math.floor(random() * 40) : -1;
  const socket = io(via ?? url, {
    forceNew: true,
    transports,
    auth: (give) => give(resume === "auth" ? { token: "test-token", cursors: { [job]: cursor } } : { token: "test-token" }),
    reconnectionDelay: 50,
    reconnectionDelayMax: 400,
  });
  const again = () => setTimeout(watch, 200);
  function watch() {
    if (!socket.connected) return;
    socket.emit("watch", cursor ? { job, cursor } : { job }, (answer) => {
      if (answer.op === "watching") return;
      seen.errors.push(answer.code);
      if (answer.code === "unavailable") again();
    });
  }
  socket.on("connect", () => {
    const engine = socket.io.engine;
    const note = () => seen.transports.includes(engine.transport.name) || seen.transports.push(engine.transport.name);
    note();
    engine.on("upgrade", note);
    if (resume === "watch") watch();
  });
  socket.on("connected", ({ version, protocol }) => {
    if (version && protocol) seen.connected += 1;
  });
  socket.on("connect_error", () => (seen.refused += 1));
  socket.on("disconnect", (reason) => seen.disconnects.push(reason));
  socket.on("tailwater:error", ({ code }) => {
    seen.errors.push(code);
    if (code === "unavailable") again();
  });
  const about = new Set(["connected", "watching", "live", "missing", "end", "tailwater:error"]);
  socket.onAny((name, data) => {
    if (about.has(name)) return;
    if (name !== data.type || data.job !== job) return seen.stray.push(name);
    if (data.seq <= last && resume === "auth") return (seen.repeated += 1);
    if (data.seq <= last) seen.doubled += 1;
    else if (data.seq > last + 1) seen.gaps += 1;
    last = Math.max(last, data.seq);
    seen.events += 1;
    cursor = data.cursor;
    if (name === "job:started:v1" && !data.continues) seen.text = "";
    if (name === "model:chunk:v1") seen.text += data.text;
    if (--next_cut === 0 && cuts-- > 0) {
      next_cut = 1 + Math.floor(random() * 40);
      socket.io.engine.close();
    }
  });
  socket.on("live", () => (seen.live += 1));
  socket.on("missing", ({ from, to }) => {
    seen.missing += to - from + 1;
    last = to;
  });
  if (slow) socket.once("connect", () => throttle(socket, slow));
  return new Promise((resolve) => {
    const ends = (stuck) => {
      clearTimeout(impatient);
      const sha256 = createHash("sha256").update(seen.text).digest("hex");
      console.log(JSON.stringify({ ...seen, text: undefined, sha256, last, stuck }));
      socket.close();
      resolve();
    };
    const engine = () => ({ state: socket.io.engine?.readyState, transport: socket.io.engine?.transport?.readyState });
    const impatient = setTimeout(() => ends({ connected: socket.connected, ...engine() }), patience);
    socket.on("end", () => ends(false));
  });
}

// Lets the operating system's buffers fill: the client is slow, not gone.
async function throttle(socket, { for: whole, every, bytes }) {
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const tcp = socket.io.engine.transport.ws._socket;
  const end = Date.now() + whole;
  let most = bytes;
  tcp.on("data", () => tcp.bytesRead >= most && Date.now() < end && tcp.pause());
  while (Date.now() < end) {
    await wait(every);
    most = Date.now() < end ? tcp.bytesRead + bytes : Infinity;
    tcp.resume();
  }
}

await Promise.all(clients.map(follow));

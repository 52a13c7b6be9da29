// Sends requests that an edge refuses, with the unmodified official client. The argument is a JSON object: url, transports.
// Prints one JSON line with the answers.
import { createRequire } from "node:module";
const { io } = createRequire(new URL("../../.tools/node/", import.meta.url))("socket.io-client");

const { url, transports } = JSON.parse(process.argv[2]);
// Without the trailing slash, as in some configurations.
const socket = io(url, { transports, addTrailingSlash: false, reconnection: false });
const seen = { disconnects: [] };
socket.on("disconnect", (reason) => seen.disconnects.push(reason));
const event = (name) => new Promise((resolve) => socket.once(name, resolve));

await event("connected");
seen.argument = await socket.emitWithAck("watch", Buffer.from("abc"));
seen.field = await socket.emitWithAck("submit", {
  kind: "demo",
  ref: "r",
  input: { parts: [Buffer.alloc(100_000), new Uint8Array(3).buffer, new Uint8Array(0)] },
});
seen.beside = await socket.emitWithAck("unwatch", { job: "j" }, Buffer.from("abc"));
const error = event("tailwater:error");
socket.emit("cancel", { job: "j", reason: Buffer.from("abc") });
seen.event = await error;

const other = socket.io.socket("/admin");
other.connect();
seen.namespace = await new Promise((resolve) => other.once("connect_error", ({ message }) => resolve(message)));

// The connection still works.
seen.after = await socket.emitWithAck("watch", { job: "after" });
seen.disconnected = seen.disconnects.length;
console.log(JSON.stringify(seen));
process.exit(0);

// Follows a job with the npm package `socket.io-client`: socketio.mjs URL JOB [TRANSPORT]. Prints each event as a line of JSON,
// and ends with the job. The package reconnects by itself; the script watches the job again from its last event.
import { createRequire } from "node:module";

const require = createRequire(new URL("../../../.tools/node/package.json", import.meta.url));
const { io } = require("socket.io-client");
const [url, job, transport] = process.argv.slice(2);

let cursor;
const compact = Boolean(process.env.COMPACT);
const print = (frame) => console.log(JSON.stringify(frame));
const transports = transport ? [transport] : undefined;
const socket = io(url, { auth: { token: "test-token" }, transports, reconnectionDelay: 50, reconnectionDelayMax: 400 });
const watch = () =>
  socket.emit("watch", cursor ? { job, cursor, compact } : { job, compact }, (answer) => answer.op === "watching" || refused(answer));
const refused = (answer) => {
  if (answer.code === "unavailable") return setTimeout(() => socket.connected && watch(), 100);
  if (answer.code === "cursor_not_in_log") {
    cursor = undefined;
    print({ op: "anew", job });
    return watch();
  }
  console.error(answer);
  process.exit(1);
};
socket.on("tailwater:error", refused);
socket.on("connect", watch);
socket.onAny((name, frame) => {
  if (frame.type === name) {
    cursor = frame.cursor;
    print(frame);
  }
});
socket.on("missing", print);
socket.on("end", (frame) => {
  print(frame);
  socket.close();
});

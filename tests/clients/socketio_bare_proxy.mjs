// Connects to an edge through a proxy without WebSocket support: it forwards requests without `Upgrade` and `Connection`,
// as HTTP requires. With the unmodified official client. The argument is a JSON object: url. Prints one JSON line.
import http from "node:http";
import { createRequire } from "node:module";
const { io } = createRequire(new URL("../../.tools/node/", import.meta.url))("socket.io-client");

const { url } = JSON.parse(process.argv[2]);
const seen = { upgrades: [] };

function pass(request, respond) {
  const { upgrade, connection, ...headers } = request.headers;
  const { hostname, port } = new URL(url);
  return request.pipe(http.request({ hostname, port, path: request.url, method: request.method, headers }, respond));
}
const proxy = http.createServer((request, response) => {
  pass(request, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
});
proxy.on("upgrade", (request, socket) => {
  pass(request, (answer) => {
    seen.upgrades.push(answer.statusCode);
    socket.end(`HTTP/1.1 ${answer.statusCode} ${answer.statusMessage}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`);
  }).on("error", () => {});
});
await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
const via = `http://127.0.0.1:${proxy.address().port}`;

// A client that tries a WebSocket first continues by polling, and one that starts with polling keeps polling.
for (const transports of [["websocket", "polling"], ["polling", "websocket"]]) {
  const socket = io(via, { forceNew: true, transports, tryAllTransports: true, reconnection: false });
  const refused = seen.upgrades.length;
  const { op } = await socket.emitWithAck("watch", { job: "j" });
  while (seen.upgrades.length === refused) await new Promise((resolve) => setTimeout(resolve, 10));
  seen[transports[0]] = [op, socket.io.engine.transport.name];
  socket.close();
}
// One that can only use a WebSocket gets an error.
const socket = io(via, { forceNew: true, transports: ["websocket"], reconnection: false });
seen.only = await new Promise((resolve) => socket.once("connect_error", ({ message }) => resolve(message)));
console.log(JSON.stringify(seen));
process.exit(0);

// The client in Node.js against a real edge: submits, iterates, cuts the connection once, and compares with the backend.
// The argument is `{ url }`. Prints one JSON line for each transport.
import { createRequire } from "node:module";
import { connect } from "../../clients/typescript/dist/client.js";

const { WebSocket } = createRequire(new URL("../../.tools/node/package.json", import.meta.url))("ws");
const { url } = JSON.parse(process.argv[2]);

for (const transport of ["sse", "websocket"]) {
  // Node.js 20 has no WebSocket; later versions have one.
  if (transport === "sse") delete globalThis.WebSocket;
  const tw = connect(url, transport === "sse" ? {} : { WebSocket });
  const { job } = await tw.submit({ kind: "demo", input: { words: 60, rate: 60, seed: 5 } });
  const watch = tw.watch(job);
  const seqs = [];
  for await (const { seq } of watch) if (seqs.push(seq) === 5) tw.reconnect();
  const { output, seq } = await tw.state(job, { wait: 10 });
  const isWhole = seqs.length === seq && seqs.every((seq, index) => seq === index + 1);
  console.log(JSON.stringify({ transport: tw.transport, isWhole, isSame: watch.text === output, missing: watch.missing }));
}

// Receives the benchmark's events: one connection, one event a line, `JOB JSON`. An empty line is answered with an empty
// line when everything before it has been published.
import { createServer } from "node:net";

export async function receiveLines(publish, settled) {
  const server = createServer((socket) => {
    let partial = "";
    socket.setEncoding("latin1").setNoDelay();
    socket.on("data", async (data) => {
      const lines = (partial + data).split("\n");
      partial = lines.pop();
      for (const line of lines) {
        const space = line.indexOf(" ");
        if (space > 0) publish(line.slice(0, space), line.slice(space + 1));
        else settled().then(() => socket.write("\n"));
      }
    });
    socket.on("error", () => {});
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  return server.address().port;
}

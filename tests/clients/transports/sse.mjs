// Follows a job with the npm package `eventsource`: sse.mjs URL JOB. Prints each event as a line of JSON, and ends with the job.
// The package reconnects by itself, from the last event that it has.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(new URL("../../../.tools/node/package.json", import.meta.url));
const { EventSource } = await import(pathToFileURL(require.resolve("eventsource")));
const [url, job] = process.argv.slice(2);

let last;
const print = (frame) => console.log(JSON.stringify(frame));
// The library's timers alone do not keep a program running.
const alive = setInterval(() => {}, 1000);
const open = () => {
  const source = new EventSource(`${url}/api/jobs/${job}/events${process.env.COMPACT ? "?compact=1" : ""}`);
  source.onmessage = ({ data }) => {
    last = JSON.parse(data);
    print(last);
  };
  source.addEventListener("missing", ({ data }) => print(JSON.parse(data)));
  source.onerror = ({ code, message }) => {
    if (source.readyState !== EventSource.CLOSED) return;
    // The log no longer has the event of the last id.
    if (code === 410) {
      print({ op: "anew", job });
      return open();
    }
    // A browser would not retry this by itself, but users reload the page.
    if (code === 503) return setTimeout(open, 200);
    clearInterval(alive);
    if (["job:done:v1", "job:failed:v1", "job:cancelled:v1"].includes(last?.type)) return print({ op: "end", job });
    console.error(`closed before the end: ${code} ${message}`);
    process.exitCode = 1;
  };
};
open();

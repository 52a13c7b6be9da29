// Follows a job's events with the npm package `eventsource`, as it is, until that stops by itself. Prints one line of JSON.
// Usage: node sse.mjs URL [DROPS]: so many times the connection breaks in the middle of a read, at random.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(new URL("../../.tools/node/package.json", import.meta.url));
const { EventSource } = await import(pathToFileURL(require.resolve("eventsource")));

const [url, drops = "0"] = process.argv.slice(2);
const seen = { events: [], ids: [], missing: [], opened: 0, asked: [], statuses: [] };
let left = Number(drops);
let cut;

// The network, which sometimes breaks. The library neither knows nor is told anything else.
async function fetchOverBadNetwork(input, init) {
  seen.asked.push(new Headers(init.headers).get("last-event-id"));
  const broken = new AbortController();
  const response = await fetch(input, { ...init, signal: AbortSignal.any([init.signal, broken.signal]) });
  seen.statuses.push(response.status);
  if (response.status === 200) cut = () => broken.abort(new TypeError("the network broke"));
  return response;
}

let until = next();
function next() {
  return Math.floor(Math.random() * 6);
}

// The library's timers alone do not keep a program running.
const alive = setInterval(() => {}, 1000);
const source = new EventSource(url, { fetch: fetchOverBadNetwork });
source.onopen = () => seen.opened++;
source.onmessage = ({ data, lastEventId }) => {
  seen.events.push(JSON.parse(data));
  seen.ids.push(lastEventId);
  // What has arrived already is told though the connection is cut.
  if (left > 0 && cut && until-- <= 0) {
    left--;
    until = next();
    cut();
    cut = undefined;
  }
};
source.addEventListener("missing", ({ data }) => seen.missing.push(JSON.parse(data)));
source.onerror = () => {
  if (source.readyState !== EventSource.CLOSED) return;
  console.log(JSON.stringify(seen));
  clearInterval(alive);
};

// Follows a job's events with an unmodified npm package, until that stops by itself. Prints one line of JSON.
// Usage: node sse.mjs PACKAGE URL [DROPS]
// PACKAGE is `eventsource`, which sends the last id in a header, or `event-source-polyfill`, which sends it in the query.
// DROPS is how often the connection breaks, each time after one to six events, at random.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [name, url, drops = "0"] = process.argv.slice(2);
const seen = { events: [], ids: [], missing: [], opened: 0, asked: [], statuses: [] };
let left = Number(drops);

/** The body up to the end of this many events, however many one read brings. Then the network breaks. */
function breaksAfter(body, events) {
  const reader = body.getReader();
  let last;
  const pull = async (controller) => {
    if (events === 0) {
      left--;
      reader.cancel().catch(() => {});
      throw new TypeError("the network broke");
    }
    const { value, done } = await reader.read();
    if (done) return controller.close();
    let end = 0;
    while (end < value.length && events > 0) {
      // Each empty line ends an event: nothing else in a stream has one.
      if (value[end] === 10 && last === 10) events--;
      last = value[end++];
    }
    controller.enqueue(value.subarray(0, end));
  };
  // An error would discard bytes that nobody has asked for.
  return new ReadableStream({ pull, cancel: (reason) => reader.cancel(reason) }, { highWaterMark: 0 });
}

// A network that sometimes breaks, invisibly to the library.
const network = globalThis.fetch;
async function fetchOverBadNetwork(input, init) {
  const header = new Headers(init.headers).get("last-event-id");
  seen.asked.push(header ?? new URL(input).searchParams.get("lastEventId"));
  const response = await network(input, init);
  const { status, statusText, headers } = response;
  seen.statuses.push(status);
  if (status === 200 && left > 0) {
    const body = breaksAfter(response.body, 1 + Math.floor(Math.random() * 6));
    return new Response(body, { status, statusText, headers });
  }
  // The polyfill reads the body before it looks at the status, and a 204 has none with `fetch`. With XMLHttpRequest, which
  // Node.js does not have, it is an empty one.
  return response.body ? response : { status, statusText, headers, body: new Response("").body };
}

// The polyfill reads the global function when it is loaded.
globalThis.fetch = fetchOverBadNetwork;
const require = createRequire(new URL("../../.tools/node/package.json", import.meta.url));
const library = await import(pathToFileURL(require.resolve(name)));
const EventSource = library.EventSourcePolyfill ?? library.EventSource;
// The polyfill reports every broken connection here.
console.error = () => {};

// The library's timers alone do not keep a program running.
const alive = setInterval(() => {}, 1000);
const source = new EventSource(url, { fetch: fetchOverBadNetwork });
source.onopen = () => seen.opened++;
source.onmessage = ({ data, lastEventId }) => {
  seen.events.push(JSON.parse(data));
  seen.ids.push(lastEventId);
};
source.addEventListener("missing", ({ data }) => seen.missing.push(JSON.parse(data)));
source.onerror = () => {
  if (source.readyState !== EventSource.CLOSED) return;
  console.log(JSON.stringify(seen));
  clearInterval(alive);
};

// Streams of the package resumable-stream over Redis, as Server-Sent Events. As intended by the package, the process that
// produces a stream also serves clients.
//   node resumable.mjs REDIS_SOCKET
// Prints `ready PORT PUBLISH_PORT`. The id of an event is how many characters to skip after it.
import { createServer } from "node:http";
import { Readable } from "node:stream";
import { createClient } from "redis";
import { createResumableStreamContext } from "resumable-stream/redis";
import { receiveLines } from "./lines.mjs";

const redis = () => createClient({ socket: { path: process.argv[2] } }).connect();
const [subscriber, publisher] = [await redis(), await redis()];
const context = createResumableStreamContext({ waitUntil: () => {}, subscriber, publisher });
const jobs = new Map();

function start() {
  const job = { characters: 0, created: undefined };
  job.stream = new ReadableStream({ start: (controller) => (job.controller = controller) });
  return job;
}

function publish(name, event) {
  let job = jobs.get(name);
  if (!job) {
    jobs.set(name, (job = start()));
    job.created = context.createNewResumableStream(name, () => job.stream);
    // The first client of a stream reads it directly; nothing else takes part in that.
    job.created.then((stream) => stream.pipeTo(new WritableStream()));
  }
  const data = `\ndata: ${event}\n\n`;
  job.characters += "id: ".length + 12 + data.length;
  job.controller.enqueue(`id: ${String(job.characters).padStart(12, "0")}${data}`);
}

async function settled() {
  await Promise.all([...jobs.values()].map((job) => job.created));
  await publisher.ping();
}

const server = createServer(async (request, response) => {
  const job = request.url.split("/")[3];
  const stream = await context.resumeExistingStream(job, Number(request.headers["last-event-id"] ?? 0));
  if (!stream) return response.writeHead(404).end();
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  Readable.fromWeb(stream).on("error", () => response.destroy()).pipe(response);
  response.on("close", () => stream.locked || stream.cancel());
});
const publishPort = await receiveLines(publish, settled);
server.listen(0, "127.0.0.1", () => console.log("ready", server.address().port, publishPort));

// Socket.IO over Redis: a server that clients connect to, and the publisher, a process of its own.
//   node socketio.mjs server|publisher pubsub|streams REDIS_SOCKET
// `pubsub`: the Redis adapter and the emitter. `streams`: the Redis Streams adapter with connection state recovery.
// Prints `ready PORT`.
import { createServer } from "node:http";
import { createAdapter as pubsubAdapter } from "@socket.io/redis-adapter";
import { Emitter } from "@socket.io/redis-emitter";
import { createAdapter as streamsAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";
import { receiveLines } from "./lines.mjs";

const [role, mode, path] = process.argv.slice(2);
const redis = await createClient({ socket: { path } }).connect();

async function adapter() {
  return mode === "streams" ? streamsAdapter(redis) : pubsubAdapter(redis, await redis.duplicate().connect());
}

if (role === "publisher") {
  const emitter = mode === "streams" ? new Server({ adapter: await adapter() }) : new Emitter(redis);
  const publish = (job, event) => emitter.to(job).emit("event", JSON.parse(event));
  console.log("ready", await receiveLines(publish, () => redis.ping()));
} else {
  const server = createServer();
  const recovery = mode === "streams" ? { connectionStateRecovery: { maxDisconnectionDuration: 120_000 } } : {};
  const io = new Server(server, { transports: ["websocket"], adapter: await adapter(), ...recovery });
  io.on("connection", (socket) => {
    socket.on("watch", ({ job }) => {
      socket.join(job);
      // There is no history: these stand for the two events that a job begins with.
      for (const seq of [1, 2]) socket.emit("event", { type: "joined", job, seq });
    });
  });
  server.listen(0, "127.0.0.1", () => console.log("ready", server.address().port));
}

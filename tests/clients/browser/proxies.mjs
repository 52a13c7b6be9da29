// Pages whose edge is behind a proxy: each event arrives before the next one exists.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import net from "node:net";
import { pathToFileURL } from "node:url";
import { require, run } from "./world.mjs";

/** A port that is free now. */
async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Resolves when something listens there. */
async function listens(port) {
  for (let tries = 0; tries < 1200; tries++) {
    const socket = net.connect(port, "127.0.0.1");
    const open = await new Promise((resolve) => socket.once("connect", () => resolve(true)).once("error", () => resolve(false)));
    socket.destroy();
    if (open) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`Nothing listens on ${port}.`);
}

/** nginx with these settings of a location, in front of an edge; its address. */
async function nginx(world, edge, settings = "") {
  const port = await freePort();
  const dir = `${world.folder}/nginx`;
  await mkdir(dir);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${dir}/${name};`);
  // `gzip on` as in Debian's nginx.conf; what is not named has nginx's default.
  const config = `
    daemon off; master_process off; pid ${dir}/pid; error_log ${dir}/error.log;
    events {}
    http {
      access_log off; gzip on; ${temporary.join(" ")}
      server { listen 127.0.0.1:${port}; location / { proxy_pass http://${edge}; ${settings} } }
    }`;
  await writeFile(`${dir}/nginx.conf`, config);
  const child = spawn("nginx", ["-p", dir, "-c", `${dir}/nginx.conf`, "-e", `${dir}/error.log`], { stdio: "ignore" });
  const dies = once(child, "exit");
  world.after(async () => {
    child.kill("SIGKILL");
    await dies;
  });
  await listens(port);
  return `127.0.0.1:${port}`;
}

/** Shows a job in a page that was served by the proxy itself, with `EventSource` and with the client. */
async function follow(page, job) {
  await page.evaluate(async (job) => {
    window.texts = { events: "", client: "" };
    const events = new EventSource(`/api/jobs/${job}/events`);
    events.onmessage = ({ data }) => (window.texts.events += JSON.parse(data).text ?? "");
    const { connect } = await import("/client.js");
    window.tw = connect(location.origin);
    window.tw.watch(job, { onChange: ({ text }) => (window.texts.client = text) });
  }, job);
}

/** Requires that a page shows each step of a job before the next one is made, over this transport of the client. */
async function arrivesAsItIsMade(world, addr, transport) {
  const page = await world.context.newPage();
  page.on("pageerror", (error) => process.stderr.write(`page: ${error.stack}\n`));
  await page.goto(`http://${addr}/`);
  const input = world.input();
  const body = { kind: "exec", input };
  // Through the proxy, too.
  const { job } = await page.evaluate(async (body) => {
    const headers = { "content-type": "application/json" };
    const response = await fetch("/api/jobs", { method: "POST", headers, body: JSON.stringify(body) });
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  }, body);
  await follow(page, job);
  for (const step of [1, 2, 3, 4, 5]) {
    await writeFile(`${input.gate}.${step}`, "");
    const shown = (step) => Object.values(window.texts).every((text) => text.includes(`step-${step}`));
    await page.waitForFunction(shown, step, { timeout: 20_000 });
  }
  const { output } = await world.result(job);
  assert.deepEqual(await page.evaluate(() => window.texts), { events: output, client: output });
  assert.equal(await page.evaluate(() => tw.transport), transport);
  return page;
}

/** Requires that the server of a page compresses what the edge allows, as otherwise nothing was tested. */
async function assertCompresses(page, path) {
  const encoding = await page.evaluate(async (path) => (await fetch(path)).headers.get("content-encoding"), path);
  assert.ok(encoding, `${path} is not compressed`);
}

await run({
  /** With the fewest settings: no WebSockets, HTTP/1.0 to the edge, and nginx's own host name. */
  async nginx_by_default(world) {
    const edge = await world.edge("127.0.0.1:0", ["--allow-origin", "*"]);
    await arrivesAsItIsMade(world, await nginx(world, edge.addr), "sse");
  },

  /** With the settings of docs/troubleshooting.md. */
  async nginx_with_websockets(world) {
    const document = await readFile(new URL("../../../docs/troubleshooting.md", import.meta.url), "utf8");
    const [, [, block]] = document.matchAll(/```nginx\n([^`]*)```/g);
    const settings = block.split("\n").filter((line) => line.startsWith(" ") && !line.includes("proxy_pass"));
    assert.ok(settings.length > 3, block);
    await arrivesAsItIsMade(world, await nginx(world, world.addr, settings.join(" ")), "websocket");
  },

  /** Vite with a middleware that compresses every answer, as other development servers do by default. */
  async compressing_dev_server(world) {
    const { createServer } = await import(pathToFileURL(require.resolve("vite")));
    const compression = require("compression");
    // With `target` alone, the edge sees the page's host name.
    const target = { target: `http://${world.addr}`, ws: true };
    const proxy = { "/api": target, "/client.js": target, "/ws": target };
    await writeFile(`${world.folder}/index.html`, "<!doctype html><title>A development server</title>");
    const port = await freePort();
    const server = await createServer({
      configFile: false,
      root: world.folder,
      cacheDir: `${world.folder}/cache`,
      logLevel: "error",
      server: { host: "127.0.0.1", port, proxy },
      plugins: [{ name: "compress", configureServer: ({ middlewares }) => void middlewares.use(compression({ threshold: 0 })) }],
    });
    await server.listen();
    world.after(() => server.close());
    const page = await arrivesAsItIsMade(world, `127.0.0.1:${port}`, "websocket");
    await assertCompresses(page, "/api/jobs");
  },

  /** webpack-dev-server with its own settings, which compress. Its own WebSocket would be at `/ws`, like the edge's. */
  async webpack_dev_server(world) {
    const webpack = require("webpack");
    const Server = require("webpack-dev-server");
    await writeFile(`${world.folder}/index.html`, "<!doctype html><title>A development server</title>");
    await writeFile(`${world.folder}/page.js`, "");
    const compiler = webpack({
      mode: "development",
      context: world.folder,
      entry: "./page.js",
      output: { path: `${world.folder}/built` },
      // The test reads what this program prints.
      stats: "errors-only",
      infrastructureLogging: { level: "error" },
    });
    const port = await freePort();
    const options = {
      host: "127.0.0.1",
      port,
      setupExitSignals: false,
      static: { directory: world.folder, watch: false },
      webSocketServer: { type: "ws", options: { path: "/updates" } },
      proxy: [{ context: ["/api", "/client.js", "/ws"], target: `http://${world.addr}`, ws: true }],
    };
    const server = new Server(options, compiler);
    await server.start();
    world.after(() => server.stop());
    const page = await arrivesAsItIsMade(world, `127.0.0.1:${port}`, "websocket");
    // It leaves answers of less than 1 kB as they are.
    await assertCompresses(page, "/client.js");
  },
});

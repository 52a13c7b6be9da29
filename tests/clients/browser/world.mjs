// What the scenarios need: Chromium, a network that fails on request, a page with the client, and edges that can be killed.
// Node's packages are in .tools/node; Chromium is Debian's, or the one that CHROMIUM names.
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer as createHttpServer } from "node:http";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const root = new URL("../../../", import.meta.url);
export const require = createRequire(new URL(".tools/node/package.json", root));
const { chromium } = require("playwright-core");

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"].concat(
  ["--disable-background-networking", "--disable-component-update", "--disable-sync"],
);

/**
 * The features that are off. The first is the time that a page has to enter the back/forward cache, 3 s, which is not enough on
 * a busy machine. Chromium takes only the last such list, so the others are those of Playwright.
 */
const DISABLED = ["BackForwardCacheEntryTimeout", "AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose"].concat(
  ["HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "LensOverlay", "MediaRouter", "PaintHolding"],
  ["ThirdPartyStoragePartitioning", "AvoidCorsURLLoaderRestartOnRedirect", "OptimizationHints"],
  ["NetworkTimeServiceQuerying", "AimEnabled", "PreconnectToSearch"],
);

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** How many milliseconds a page may take for one step, and all scenarios together. */
const WAIT_MAX = 60_000;
const SCENARIOS_MAX = 160_000;

/** How many scenarios run at once. */
const AT_ONCE = 3;

/** Starts Chromium, with more flags. */
export function launch({ flags = [], ...options } = {}) {
  // Playwright switches the back/forward cache off, which people have.
  const ignoreDefaultArgs = ["--disable-back-forward-cache"];
  const args = [...FLAGS, `--disable-features=${DISABLED}`, ...flags];
  return chromium.launch({ executablePath, args, ignoreDefaultArgs, ...options });
}

/** A program of this folder as one module, with other packages for the names in `alias`. */
export async function bundle(file, alias) {
  const { outputFiles } = await require("esbuild").build({
    entryPoints: [fileURLToPath(new URL(file, import.meta.url))],
    alias,
    nodePaths: [fileURLToPath(new URL(".tools/node/node_modules", root))],
    bundle: true,
    format: "esm",
    write: false,
    logLevel: "error",
  });
  return outputFiles[0].text;
}

const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** What one scenario has to itself, beside `{ addr, nats, bin }` of a running `tailwater up`. */
export class World {
  #ends = [];

  constructor(browser, { addr, nats, bin, secret }) {
    Object.assign(this, { browser, addr, nats, bin, secret });
  }

  async start() {
    this.folder = await mkdtemp(`${tmpdir()}/tailwater-browser-`);
    // A browser that ends may still write to its profile.
    this.#ends.push(() => rm(this.folder, { recursive: true, maxRetries: 20 }));
    const context = await this.browser.newContext();
    this.#ends.push(() => context.close());
    this.context = context;
    this.context.setDefaultTimeout(WAIT_MAX);
    this.network = await Network.to(this.addr);
    this.#ends.push(() => this.network.close());
    this.pages = await pageServer();
    this.#ends.push(() => this.pages.close());
    return this;
  }

  /** Calls `end` when the scenario is over. */
  after(end) {
    this.#ends.push(end);
  }

  async end() {
    for (const end of this.#ends.reverse()) await end();
  }

  /** A page with the client as `tw`, connected over `network`. */
  async page(options = {}) {
    const page = await this.context.newPage();
    page.on("pageerror", (error) => process.stderr.write(`page: ${error.stack}\n`));
    const query = new URLSearchParams({ edge: `http://${this.network.addr}`, options: JSON.stringify(options) });
    await page.goto(`http://${this.pages.addr}/?${query}`);
    await page.waitForFunction(() => "tw" in window);
    return page;
  }

  /** Continues in a Chromium whose tabs hide each other, as a person's do. Playwright shows all pages of its own at once. */
  async useTabs() {
    // Without a first window: Playwright would wait for a page in it, and on a busy machine may miss its end of loading.
    const profile = [`--user-data-dir=${this.folder}/profile`, "--no-startup-window"];
    const args = [...FLAGS, ...profile, "--disable-dev-shm-usage", "--remote-debugging-port=0"];
    const child = spawn(executablePath, args, { stdio: ["ignore", "ignore", "pipe"] });
    const dies = once(child, "exit");
    this.#ends.push(async () => {
      child.kill("SIGKILL");
      await dies;
    });
    let address;
    for await (const line of createInterface(child.stderr)) {
      address = /listening on (ws:\S+)/.exec(line)?.[1];
      if (address) break;
    }
    if (!address) throw new Error("Chromium did not start.");
    // A full pipe would stop it.
    child.stderr.resume();
    const browser = await chromium.connectOverCDP(address, { noDefaults: true, timeout: WAIT_MAX });
    const session = await browser.newBrowserCDPSession();
    this.#ends.push(async () => {
      await session.send("Browser.close").catch(() => {});
      await dies;
    });
    [this.context] = browser.contexts();
    this.context.setDefaultTimeout(WAIT_MAX);
  }

  /** A token with these grants, for a number of seconds. An edge that checks tokens must have `secret`. */
  token(tailwater, seconds) {
    const claims = { sub: "page", exp: Math.ceil(Date.now() / 1000) + seconds, tailwater };
    const message = `${part({ alg: "HS256" })}.${part(claims)}`;
    return `${message}.${createHmac("sha256", this.secret).update(message).digest("base64url")}`;
  }

  /** Another edge over the same log, which checks tokens, and the file with its secret. */
  async edgeWithTokens(flags = []) {
    const secretFile = `${this.folder}/secret`;
    await writeFile(secretFile, this.secret);
    const edge = await this.edge("127.0.0.1:0", ["--auth", "jwt", "--auth-secret", secretFile, ...flags]);
    return { ...edge, secretFile };
  }

  /** The input of a job that prints words until `finish` is called with it. */
  input() {
    return { gate: `${this.folder}/${Math.random().toString(36).slice(2)}` };
  }

  /** Submits such a job to the edge. */
  async submit(input, headers = {}) {
    headers = { ...headers, "content-type": "application/json" };
    const body = JSON.stringify({ kind: "exec", input });
    const response = await fetch(`http://${this.addr}/api/jobs`, { method: "POST", headers, body });
    return (await response.json()).job;
  }

  /** Lets a job end. */
  finish({ gate }) {
    return writeFile(gate, "");
  }

  /** What the backend has written, once the job has ended. */
  async result(job) {
    const response = await fetch(`http://${this.addr}/api/jobs/${job}?wait=30`);
    const state = await response.json();
    if (!["done", "cancelled", "failed"].includes(state.status)) throw new Error(`${job} is ${state.status}`);
    return state;
  }

  /** The stored events of a job, up to a thousand, from an edge that needs no token. */
  async events(job) {
    const headers = { accept: "application/json" };
    const response = await fetch(`http://${this.addr}/api/jobs/${job}/events?limit=1000`, { headers });
    return (await response.json()).events;
  }

  /** Waits until the log of a job has this many events. */
  async hasEvents(job, count) {
    const deadline = Date.now() + WAIT_MAX;
    for (let found = 0; found < count; ) {
      if (Date.now() > deadline) throw new Error(`${job} has only ${found} events.`);
      await sleep(50);
      found = (await this.events(job))?.length ?? 0;
    }
  }

  /** Another edge over the same log. */
  async edge(listen = "127.0.0.1:0", flags = []) {
    const args = ["edge", "--nats", this.nats, "--listen", listen, ...flags];
    const child = spawn(this.bin, args, { stdio: ["ignore", "pipe", "ignore"] });
    const dies = once(child, "exit");
    const kill = async () => {
      child.kill("SIGKILL");
      await dies;
    };
    this.#ends.push(kill);
    for await (const line of createInterface(child.stdout)) {
      if (line.startsWith("ready http://")) return { addr: line.slice("ready http://".length), kill };
    }
    throw new Error("The edge did not start.");
  }

  /** A worker of this kind that runs a program, with more flags of `exec`. */
  worker(kind, command, flags = []) {
    const args = ["worker", "--nats", this.nats, "--kind", kind, "exec", ...flags, "--", ...command];
    const child = spawn(this.bin, args, { stdio: "ignore" });
    const dies = once(child, "exit");
    this.#ends.push(async () => {
      child.kill("SIGTERM");
      await dies;
    });
  }
}

/** A TCP proxy: a network that can be cut, lose its connections, or refuse WebSockets. */
class Network {
  sockets = new Set();
  isCut = false;
  blocksWebSockets = false;
  /** How many WebSockets were asked for, and how many before the edge first said that it is ready. */
  upgrades = 0;
  upgradesUntilReady = undefined;

  static async to(target) {
    const network = new Network();
    network.target = target;
    network.server = net.createServer((client) => network.#pass(client));
    network.server.listen(0, "127.0.0.1");
    await once(network.server, "listening");
    network.addr = `127.0.0.1:${network.server.address().port}`;
    return network;
  }

  #pass(client) {
    this.#track(client);
    if (this.isCut) return client.destroy();
    let upstream;
    let asksIfReady = false;
    client.on("data", (data) => {
      const head = data.toString("latin1");
      asksIfReady = head.startsWith("GET /readyz ");
      if (!upstream) {
        const isUpgrade = /^upgrade: *websocket/im.test(head);
        this.upgrades += Number(isUpgrade);
        if (isUpgrade && this.blocksWebSockets) return client.end("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
        const [host, port] = this.target.split(":");
        upstream = net.connect(Number(port), host);
        this.#track(upstream);
        upstream.on("data", (back) => {
          // Before the page has the answer, and does what follows from it.
          if (asksIfReady && back.toString("latin1").startsWith("HTTP/1.1 200 ")) this.upgradesUntilReady ??= this.upgrades;
          client.write(back);
        });
        upstream.on("close", () => client.destroy());
        client.on("close", () => upstream.destroy());
      }
      upstream.write(data);
    });
  }

  #track(socket) {
    this.sockets.add(socket);
    socket.setNoDelay(true);
    socket.on("error", () => {});
    socket.on("close", () => this.sockets.delete(socket));
  }

  /** Breaks all connections, and refuses new ones. */
  cut() {
    this.isCut = true;
    this.sockets.forEach((socket) => socket.destroy());
  }

  /** Passes nothing more on existing connections, which stay open, as when a laptop changes its network. */
  abandon() {
    this.sockets.forEach((socket) => socket.removeAllListeners("data").removeAllListeners("close").resume());
  }

  /** Passes new connections again. */
  restore() {
    this.isCut = false;
  }

  async close() {
    this.cut();
    this.server.close();
  }
}

/** Serves the page of the scenarios, from another origin than the edge's. */
async function pageServer() {
  const files = {
    "/": ["text/html", await readFile(new URL("page.html", import.meta.url))],
    "/client.js": ["text/javascript", await readFile(new URL("clients/typescript/dist/client.js", root))],
  };
  const server = createHttpServer(({ url }, response) => {
    const [type, text] = files[new URL(url, "http://x").pathname] ?? [];
    response.writeHead(text ? 200 : 404, { "content-type": type ?? "text/plain", "cache-control": "max-age=0" }).end(text);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    addr: `127.0.0.1:${server.address().port}`,
    files,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** Runs the scenarios that the argument names, beside each other in one Chromium. */
export async function run(scenarios) {
  const { names, ...given } = JSON.parse(process.argv[2]);
  const timer = setTimeout(() => {
    process.stderr.write("The scenarios take too long.\n");
    process.exit(1);
  }, SCENARIOS_MAX);
  const browser = await launch();
  const run = async (name) => {
    const begun = Date.now();
    const world = await new World(browser, given).start();
    try {
      await scenarios[name](world);
      console.log(JSON.stringify({ name, seconds: (Date.now() - begun) / 1000 }));
    } catch (error) {
      process.exitCode = 1;
      process.stderr.write(`${name}: ${error.stack}\n`);
    } finally {
      await world.end();
    }
  };
  const waiting = [...names];
  const runAll = async () => {
    for (let name; (name = waiting.shift()); ) await run(name);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, runAll));
  clearTimeout(timer);
  await browser.close();
  // React's scheduler would keep the process.
  process.exit();
}

// What the scenarios of the console share: the page as the edge serves it, with what it asks for.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { require } from "./world.mjs";

const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");
const execute = promisify(execFile);

/**
 * Opens the console, and requires that it loads nothing from elsewhere and breaks no policy. `requests` has the address of
 * everything it asks for. What it copies is in `copied`, since all pages share one clipboard.
 */
export async function visit(world, { addr = world.network.addr, hash = "", refusals = false, clock = false, ...options } = {}) {
  const context = await world.browser.newContext(options);
  world.after(() => context.close());
  context.setDefaultTimeout(60_000);
  const page = await context.newPage();
  const origin = `http://${addr}`;
  const faults = [];
  const requests = [];
  page.on("pageerror", (error) => faults.push(error.stack));
  page.on("console", (message) => {
    // A request that failed while the network was cut is reported here, too, and one that was made while the broker was
    // slow to answer the edge.
    if (message.type() !== "error" || /net::ERR|status of 503/.test(message.text())) return;
    if (!refusals || !/status of 40[13]/.test(message.text())) faults.push(message.text());
  });
  page.on("request", (request) => {
    const url = request.url();
    requests.push(url);
    if (!url.startsWith(origin) && !url.startsWith("data:")) faults.push(url);
  });
  page.on("websocket", (socket) => requests.push(socket.url()));
  await page.addInitScript(() => {
    navigator.clipboard.writeText = async (text) => {
      window.copied = text;
    };
  });
  if (clock) await page.clock.install();
  await page.goto(`${origin}/${hash}`);
  return { page, faults, requests };
}

/** The same, once the console offers kinds of jobs. */
export async function open(world, options) {
  const visited = await visit(world, options);
  await isUsable(visited.page);
  return visited;
}

export const isUsable = (page) => page.waitForFunction(() => document.getElementById("kind").options.length > 1);

export async function submit(page, kind, input) {
  const before = new URL(page.url()).hash;
  await page.selectOption("#kind", kind);
  await page.fill("#input", JSON.stringify(input));
  await page.click("#submit button.primary");
  await page.waitForFunction(
    (before) => location.hash !== before && location.hash === `#job=${document.getElementById("job-title").textContent}`,
    before,
  );
  return new URL(page.url()).hash.slice("#job=".length);
}

export const isShown = (page, status) =>
  page.waitForFunction((status) => document.getElementById("job-status").textContent === status, status);
/** Waits until an element's text has this in it. */
export const says = (page, id, part) =>
  page.waitForFunction(([id, part]) => document.getElementById(id).textContent.includes(part), [id, part]);
export const text = (page, id) => page.textContent(`#${id}`);
export const hasRows = (page, count) =>
  page.waitForFunction((count) => document.querySelectorAll("#log tr").length >= count, count);

/** Waits until an answer has arrived that the page asks for after everything else that it has asked for. */
export const settle = (page) => page.evaluate(async () => void (await (await fetch("/healthz")).text()));

/** The text that a button copies. */
export async function copied(page, button) {
  await page.evaluate(() => void (window.copied = undefined));
  await page.click(button);
  await page.waitForFunction(() => window.copied !== undefined);
  return page.evaluate(() => window.copied);
}

/** What a command prints that somebody has pasted into a shell. */
export async function pasted(command, env = {}) {
  const { stdout } = await execute("bash", ["-c", command], { env: { ...process.env, ...env }, timeout: 60_000 });
  return stdout;
}

/** What `tailwater` prints. */
export async function tailwater({ bin }, ...args) {
  const { stdout } = await execute(bin, args, { timeout: 60_000 });
  return stdout.trim();
}

/** Requires that axe-core finds nothing. */
export async function audit(page, what) {
  // Past the page's policy, as a debugger does it.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  assert.deepEqual(found, [], what);
}

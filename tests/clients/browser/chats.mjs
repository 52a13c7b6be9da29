// `useChat` of the unmodified AI SDK in Chromium: the page is reloaded, its network breaks, and the answer is the job's.
import assert from "node:assert/strict";
import { bundle, run } from "./world.mjs";

/** A page with the chat, over `network`. `packages` are those of another version of the SDK. */
async function open(world, transport, { packages = {}, hasOwnChat = false } = {}) {
  world.pages.files["/chat.js"] = ["text/javascript", await bundle("chat.js", packages)];
  const given = [`http://${world.network.addr}`, transport, hasOwnChat].map((value) => JSON.stringify(value));
  const html = `<!doctype html><title>A chat</title><link rel="icon" href="data:,"><div id="app"></div>
    <script type="module">import { start } from "/chat.js"; start(${given});</script>`;
  world.pages.files["/chat"] = ["text/html", html];
  const page = await world.context.newPage();
  page.on("pageerror", (error) => process.stderr.write(`page: ${error.stack}\n`));
  await page.goto(`http://${world.pages.addr}/chat`);
  await page.waitForFunction(() => window.chat);
  return page;
}

/** Asks something whose answer ends when `world` finishes the input. */
const ask = (page, input) => page.evaluate((body) => void chat.sendMessage({ text: "Tell me." }, { body }), input);

/** Waits until the page shows more than this many characters of the answer with this number; returns how many. */
async function grows(page, number, length) {
  const isLonger = ([number, length]) => document.querySelectorAll('p[data-role="assistant"]')[number]?.textContent.length > length;
  await page.waitForFunction(isLonger, [number, length]);
  return (await page.locator('p[data-role="assistant"]').nth(number).textContent()).length;
}

/** Requires that the last answer is over, and is all that its job wrote. */
async function assertWhole(world, page, count) {
  await page.waitForFunction(() => chat.status === "ready");
  const { job, error } = await page.evaluate(() => ({ job: chat.messages.at(-1).metadata.job, error: chat.error?.message }));
  const { output, status } = await world.result(job);
  const answers = await page.locator('p[data-role="assistant"]').allTextContents();
  assert.deepEqual([answers.length, answers.at(-1), error], [count, output, undefined]);
  assert.ok(output.length > 100, output);
  return status;
}

/** One chat: an answer that outlives its page and its network, and one that is stopped. */
async function converse(world, page) {
  const input = world.input();
  await ask(page, input);
  const before = await grows(page, 0, 40);
  await page.reload();
  const after = await grows(page, 0, before + 40);
  world.network.cut();
  await page.waitForFunction(() => chat.status === "error");
  world.network.restore();
  await page.evaluate(() => void chat.resumeStream());
  await grows(page, 0, after + 40);
  await world.finish(input);
  assert.equal(await assertWhole(world, page, 1), "done");

  await ask(page, world.input());
  await grows(page, 1, 150);
  const stop = (edge) => fetch(`${edge}/api/chat/${chat.id}/stop`, { method: "POST" }).then(({ status }) => status);
  assert.equal(await page.evaluate(stop, `http://${world.network.addr}`), 200);
  assert.equal(await assertWhole(world, page, 2), "cancelled");
}

await run({
  /** The hook of this version does not know that a transport of its options replays, so the page makes the chat itself. */
  async version_6(world) {
    const packages = { "@ai-sdk/react": "ai6-react", ai: "ai6" };
    await converse(world, await open(world, "http", { packages, hasOwnChat: true }));
  },

  async version_7(world) {
    await converse(world, await open(world, "http"));
  },

  async version_7_websocket(world) {
    await converse(world, await open(world, "websocket"));
    assert.ok(world.network.upgrades >= 3, `${world.network.upgrades} WebSockets`);
  },
});

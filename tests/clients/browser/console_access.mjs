// The console of edges that check tokens.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { audit, copied, hasRows, isShown, isUsable, pasted, says, settle, submit, tailwater, text, visit } from "./console_page.mjs";
import { run } from "./world.mjs";

/** An edge with JSON Web Tokens, and what signs one with these flags. */
async function jwtEdge(world) {
  const { addr, secretFile } = await world.edgeWithTokens();
  const sign = (sub, ...flags) => tailwater(world, "token", "--auth-secret", secretFile, "--sub", sub, ...flags);
  return { addr, sign };
}

async function give(page, token) {
  await page.fill("#token", token);
  await page.press("#token", "Enter");
}

const asksForToken = (page) => page.waitForSelector("#token-form", { state: "visible" });

/** A job that runs, and the console that somebody opened by a link to it. It asks for a token. */
async function followLink(world) {
  const { addr, sign } = await jwtEdge(world);
  const input = world.input();
  const job = await world.submit(input);
  const { page, faults } = await visit(world, { addr, hash: `#job=${job}`, refusals: true });
  await asksForToken(page);
  return { input, job, sign, page, faults };
}

/** A person with a token that allows everything uses the console; `lesser` may not read the edge's numbers. */
async function use(world, { addr, admin, lesser }) {
  const { page, faults, requests } = await visit(world, { addr, refusals: true, clock: true });
  await asksForToken(page);
  await audit(page, "without a token");
  assert.equal(await text(page, "token-error"), "");
  // Nothing more is asked for meanwhile.
  await settle(page);
  const asked = () => requests.filter((url) => new URL(url).pathname.startsWith("/api/")).length;
  const before = asked();
  await page.clock.fastForward(60_000);
  await settle(page);
  assert.equal(asked(), before);

  await give(page, "a-token-that-nobody-has-issued");
  await says(page, "token-error", "does not accept this token");
  await asksForToken(page);
  await give(page, admin);
  await isUsable(page);
  assert.equal(await page.isVisible("#token-form"), false);
  assert.equal(await page.inputValue("#token"), "");
  await page.waitForFunction(() => document.querySelector("[data-chart=connections] output").textContent !== "");

  const job = await submit(page, "exec", world.input());
  await hasRows(page, 6);
  await page.click("#stop");
  await isShown(page, "cancelled");
  // Who cancelled it.
  await says(page, "log", "cancellation requested by alice");
  assert.equal(await text(page, "text"), (await world.result(job)).output);

  // The token is in no address, in nothing that the browser keeps, and in no command.
  const kept = await page.evaluate(() =>
    JSON.stringify([location.href, document.cookie, { ...localStorage }, { ...sessionStorage }, document.documentElement.outerHTML]),
  );
  const command = await copied(page, "#job-curl");
  for (const place of [kept, command, ...requests]) assert.ok(!place.includes(admin), place);
  assert.ok(requests.some((url) => url.startsWith("ws:")));
  assert.match(await pasted(command, { TOKEN: admin }), /job:cancelled:v1/);
  assert.match(await pasted(command, { TOKEN: "none" }), /"unauthorized"/);

  // A reload forgets it.
  await page.reload();
  await asksForToken(page);
  await give(page, lesser);
  await isUsable(page);
  await page.waitForSelector("#charts-refused", { state: "visible" });
  assert.deepEqual([await page.isVisible("#charts"), await page.isVisible("#token-form")], [false, false]);
  await page.waitForSelector(`#jobs a[href="#job=${job}"]`);
  await isShown(page, "cancelled");
  await audit(page, "without the numbers");
  assert.deepEqual(faults, []);
}

await run({
  async jwt(world) {
    const { addr, sign } = await jwtEdge(world);
    const admin = await sign("alice", "--ttl", "1h", "--admin");
    const all = ["--watch", "*", "--submit", "*", "--cancel", "*", "--list"];
    await use(world, { addr, admin, lesser: await sign("bob", "--ttl", "1h", ...all) });
  },

  async token(world) {
    const [admin, lesser] = [randomBytes(32).toString("hex"), randomBytes(32).toString("hex")];
    const tokens = [{ token: admin, sub: "alice", role: "admin" }, { token: lesser, sub: "bob", role: "application" }];
    const file = `${world.folder}/tokens`;
    await writeFile(file, JSON.stringify({ tokens }));
    const { addr } = await world.edge("127.0.0.1:0", ["--auth", "token", "--auth-tokens", file]);
    await use(world, { addr, admin, lesser });
  },

  /** A token that expires is asked for again, and the job goes on where it was. */
  async expiry(world) {
    const { input, job, sign, page, faults } = await followLink(world);
    await give(page, await sign("alice", "--ttl", "15s", "--admin"));
    await hasRows(page, 6);
    await asksForToken(page);
    await says(page, "token-error", "may have expired");
    await give(page, await sign("alice", "--ttl", "1h", "--admin"));
    await world.finish(input);
    await isShown(page, "done");
    assert.equal(await text(page, "text"), (await world.result(job)).output);
    assert.equal(await text(page, "job-error"), "");
    assert.deepEqual(faults, []);
  },

  /** What an edge says about an earlier token is no reason to ask for another one. */
  async late(world) {
    const { addr, sign } = await jwtEdge(world);
    const { page, faults } = await visit(world, { addr, refusals: true });
    const refusal = { status: 401, json: { code: "token_expired", title: "Expired.", detail: "The token has expired." } };
    let answer;
    const isLate = new Promise((resolve) => (answer = resolve));
    let isExpired = false;
    await page.route("**/api/stats", (route) => (isExpired ? route.fulfill(refusal) : route.continue()));
    await page.route("**/api/jobs", async (route) => {
      await isLate;
      await route.fulfill(refusal);
    });
    await asksForToken(page);
    await give(page, await sign("alice", "--ttl", "1h", "--admin"));
    await isUsable(page);
    const submitted = page.waitForRequest((request) => request.method() === "POST");
    await page.click("#submit button.primary");
    await submitted;
    isExpired = true;
    await asksForToken(page);
    isExpired = false;
    const accepted = page.waitForResponse((response) => response.url().endsWith("/api/stats") && response.ok());
    await give(page, await sign("bob", "--ttl", "1h", "--admin"));
    await accepted;
    answer();
    await says(page, "submit-error", "(token_expired)");
    assert.equal(await page.isVisible("#token-form"), false);
    await page.unrouteAll({ behavior: "wait" });
    assert.deepEqual(faults, []);
  },

  /** With a token for one job the console shows that job, and refuses the rest in words. */
  async one_job(world) {
    const { input, job, sign, page, faults } = await followLink(world);
    await give(page, await sign("carol", "--ttl", "1h", "--watch", job));
    await hasRows(page, 6);
    await page.waitForSelector("#jobs-table-refused", { state: "visible" });
    await page.click("#stop");
    await says(page, "job-error", "(forbidden)");
    // The next events leave the refusal where it is.
    const rows = await page.locator("#log tr").count();
    await hasRows(page, rows + 3);
    assert.match(await text(page, "job-error"), /\(forbidden\)/);
    assert.deepEqual([await page.isEnabled("#stop"), await page.isVisible("#token-form")], [true, false]);
    await world.finish(input);
    await isShown(page, "done");
    assert.deepEqual(faults, []);
  },
});

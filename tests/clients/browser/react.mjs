// The hooks of `tailwater/react` in Chromium, under StrictMode, over a page that was rendered on a server.
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { fileURLToPath, pathToFileURL } from "node:url";
import { bundle, run } from "./world.mjs";

const client = (name) => fileURLToPath(new URL(`../../../clients/typescript/dist/${name}.js`, import.meta.url));

await run({
  async react(world) {
    const program = await bundle("app.js", { tailwater: client("client"), "tailwater/react": client("react") });
    const edge = `http://${world.network.addr}`;
    // On the server: in Node, where there is no window.
    const folder = await mkdtemp(`${tmpdir()}/tailwater-react-`);
    world.after(() => rm(folder, { recursive: true }));
    await writeFile(`${folder}/app.mjs`, program);
    const { html } = await import(pathToFileURL(`${folder}/app.mjs`));
    const rendered = html(edge);
    assert.match(rendered, /<output><\/output>/);
    assert.equal(world.network.upgrades, 0);

    world.pages.files["/app.js"] = ["text/javascript", program];
    const start = `<!doctype html><title>React</title><link rel="icon" href="data:,"><div id="app">${rendered}</div>
      <script type="module">import { start } from "/app.js"; start(${JSON.stringify(edge)});</script>`;
    world.pages.files["/react"] = ["text/html", start];
    const page = await world.context.newPage();
    const faults = [];
    page.on("pageerror", (error) => faults.push(error.stack));
    page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
    await page.goto(`http://${world.pages.addr}/react`);
    await page.waitForFunction(() => window.client);
    const shown = async (name) => JSON.parse(await page.textContent(`#${name} code`));

    const input = world.input();
    const job = `react-${Date.now()}`;
    await page.evaluate(([id, input]) => (window.submission = { kind: "exec", input, id }), [job, input]);
    await page.click("#first button");
    await page.waitForFunction(() => document.querySelector("#first output").textContent.length > 40);
    // A second component for the same job has the whole text at once, over the same connection.
    await page.evaluate((job) => watchToo(job), job);
    await page.waitForFunction(() => document.querySelector("#second output")?.textContent.length > 40);
    await page.evaluate(() => client.reconnect());
    await world.finish(input);
    await page.waitForFunction(() => [...document.querySelectorAll("code")].every((code) => code.textContent.includes('"ended":true')));
    const { output } = await world.result(job);
    for (const name of ["first", "second"]) {
      assert.equal(await page.textContent(`#${name} output`), output);
      const { state, missing, error } = await shown(name);
      assert.deepEqual([state, missing, error], ["done", 0, null]);
    }
    assert.equal((await shown("first")).submitted, "sent");
    assert.equal(world.network.upgrades, 2);
    // What an unmounted component watched is released, with its connection.
    await page.evaluate(() => unmount());
    await page.waitForFunction(() => client.status === "idle");
    assert.deepEqual(faults, []);
  },
});

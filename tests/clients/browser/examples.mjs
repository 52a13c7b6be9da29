// The pages of examples/, in Chromium: what each shows in the end is the job's whole output.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath, pathToFileURL } from "node:url";
import { require, run } from "./world.mjs";

const root = new URL("../../../", import.meta.url);
const path = (name) => fileURLToPath(new URL(name, root));

/** An edge that requires tokens, and a token with which a service may submit. */
async function guardedEdge(world) {
  const { addr } = await world.edgeWithTokens();
  return { url: `http://${addr}`, token: world.token({ submit: ["demo"] }, 3600) };
}

/** Waits until the page's only `pre` has the job's whole output. */
async function showsAll(world, page, job) {
  const { output, status } = await world.result(job);
  assert.equal(status, "done");
  assert.ok(output.length > 100, output);
  await page.waitForFunction((output) => document.querySelector("pre").textContent === output, output);
}

await run({
  async plain(world) {
    const page = await world.context.newPage();
    const edge = await world.edge("127.0.0.1:0", ["--allow-origin", `http://${world.pages.addr}`]);
    world.pages.files["/plain"] = ["text/html", await readFile(path("examples/plain/index.html"))];
    await page.goto(`http://${world.pages.addr}/plain?edge=http://${edge.addr}`);
    const submitted = page.waitForResponse((response) => response.request().method() === "POST");
    await page.click("#ask");
    const { job } = await (await submitted).json();
    const hasText = () => page.waitForFunction(() => document.querySelector("pre").textContent.length > 20);
    await hasText();
    // A reload in the middle shows the same job.
    await page.reload();
    await hasText();
    await showsAll(world, page, job);
    // The next job, which lasts longer than this, is stopped.
    await page.route("**/api/jobs", (route) => {
      const submission = { ...route.request().postDataJSON(), input: { words: 5000, rate: 20 } };
      return route.continue({ postData: JSON.stringify(submission) });
    });
    await page.click("#ask");
    await page.waitForFunction(() => document.querySelector("#status").textContent === "running");
    await page.click("#stop");
    await page.waitForFunction(() => document.querySelector("#status").textContent === "cancelled");
  },

  async fastapi(world) {
    const { url, token } = await guardedEdge(world);
    const args = ["-m", "uvicorn", "--app-dir", path("examples/fastapi"), "--port", "0", "main:app"];
    const env = { ...process.env, EDGE: url, TAILWATER_TOKEN: token };
    const service = spawn(path(".tools/venv/bin/python"), args, { env, stdio: ["ignore", "ignore", "pipe"] });
    const dies = once(service, "exit");
    world.after(async () => {
      service.kill("SIGKILL");
      await dies;
    });
    let address;
    for await (const line of createInterface(service.stderr)) {
      address = /running on (http:\S+)/.exec(line)?.[1];
      if (address) break;
    }
    const page = await world.context.newPage();
    await page.goto(address);
    const submitted = page.waitForResponse((response) => response.request().method() === "POST");
    await page.click("button");
    const { job } = await (await submitted).json();
    await page.waitForFunction(() => document.querySelector("pre").textContent.length > 20);
    // The service has no part in the stream.
    service.kill("SIGKILL");
    await dies;
    await showsAll(world, page, job);
  },

  /** Through the development server of the example, which also compresses, as others do by default. */
  async chat(world) {
    const { gate } = world.input();
    world.worker("chat", ["bash", path("tests/clients/browser/gated.sh"), gate, "python3", path("examples/chat/answer.py")]);
    const edge = await world.edge("127.0.0.1:0", ["--chat-kind", "chat"]);
    process.env.EDGE = `http://${edge.addr}`;
    // In the folder with the packages, so that they are found.
    const root = await mkdtemp(path(".tools/node/chat-"));
    world.after(() => rm(root, { recursive: true, maxRetries: 20 }));
    await cp(path("examples/chat"), root, { recursive: true });
    const { createServer } = await import(pathToFileURL(require.resolve("vite")));
    const compression = require("compression");
    const server = await createServer({
      root,
      cacheDir: `${root}/cache`,
      logLevel: "error",
      server: { host: "127.0.0.1", fs: { allow: [path(".tools/node")] } },
      plugins: [{ name: "compress", configureServer: ({ middlewares }) => void middlewares.use(compression({ threshold: 0 })) }],
    });
    await server.listen();
    world.after(() => server.close());
    const page = await world.context.newPage();
    await page.goto(`http://127.0.0.1:${server.httpServer.address().port}/`);

    const answers = () => page.locator('p[data-role="assistant"]');
    const send = async (text) => {
      await page.fill("input", text);
      await page.click("button >> text=Send");
    };
    await send("Nine words so that there is something to lose.");
    await answers().getByText("You said").waitFor();
    // Half of the answer is there; the other half comes after a reload.
    assert.ok(!(await answers().textContent()).includes("of this chat."));
    await page.reload();
    await writeFile(gate, "");
    const whole = "You said: Nine words so that there is something to lose. That is message 1 of this chat.";
    await answers().getByText(whole).waitFor();
    assert.equal(await answers().count(), 1);

    // The next one stays half.
    await rm(gate);
    await send("And what else is there to be said about it, in many words?");
    await answers().nth(1).getByText("You said").waitFor();
    await page.click("button >> text=Stop");
    await page.waitForFunction(() => !document.querySelector("button").disabled);
    assert.ok(!(await answers().nth(1).textContent()).includes("of this chat."));
  },

  /** The handler as Next.js calls it, and its page; without Next.js, which is large. */
  async nextjs_route(world) {
    const { url, token } = await guardedEdge(world);
    Object.assign(process.env, { TAILWATER_EDGE: url, TAILWATER_TOKEN: token });
    const { POST } = await import(pathToFileURL(path("examples/nextjs-route/app/api/ask/route.js")));
    const ask = () => POST(new Request("http://localhost/api/ask", { method: "POST", body: JSON.stringify({ words: 60 }) }));

    // The token is good for this job, and for no other.
    const [first, second] = await Promise.all([ask(), ask()].map(async (response) => (await response).json()));
    const watch = (job, bearer) => fetch(`${url}/api/jobs/${job}`, { headers: { authorization: `Bearer ${bearer}` } });
    assert.equal((await watch(first.job, first.token)).status, 200);
    assert.equal((await watch(second.job, first.token)).status, 404);

    const client = path("clients/typescript/dist/client.js");
    const { outputFiles } = await require("esbuild").build({
      stdin: {
        contents: `import Page from ${JSON.stringify(path("examples/nextjs-route/app/page.js"))};
          import { createElement } from "react";
          import { createRoot } from "react-dom/client";
          createRoot(document.getElementById("app")).render(createElement(Page));`,
        resolveDir: path("."),
      },
      alias: { tailwater: client },
      nodePaths: [path(".tools/node/node_modules")],
      loader: { ".js": "jsx" },
      jsx: "automatic",
      bundle: true,
      format: "esm",
      write: false,
      logLevel: "error",
    });
    world.pages.files["/next.js"] = ["text/javascript", outputFiles[0].text];
    const html = '<!doctype html><link rel="icon" href="data:,"><div id="app"></div><script type="module" src="/next.js"></script>';
    world.pages.files["/next"] = ["text/html", html];
    const page = await world.context.newPage();
    await page.route("**/api/ask", async (route) => {
      const response = await POST(new Request("http://localhost/api/ask", { method: "POST", body: route.request().postData() }));
      await route.fulfill({ status: response.status, contentType: "application/json", body: await response.text() });
    });
    await page.goto(`http://${world.pages.addr}/next`);
    const submitted = page.waitForResponse("**/api/ask");
    await page.click("button");
    const { job } = await (await submitted).json();
    await showsAll(world, page, job);
  },
});

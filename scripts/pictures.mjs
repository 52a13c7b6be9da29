// Makes the pictures of the console in docs/pictures/, with a job that thinks, answers, and is run again after a failure:
// node scripts/pictures.mjs. It needs a built program, Chromium, and what test.sh installs. With --check it only compares
// the files of the console with those that the pictures show.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = new URL("../", import.meta.url);
const SHOWN = ["index.html", "console.css", "console.js"];
/** Pictures of the same page are never the same bytes, so this stands for what they show. */
const digestFile = new URL("docs/pictures/console.sha256", root);

/** The digests of the console's files, as `sha256sum` prints them. */
async function digests() {
  const lines = SHOWN.map(async (name) => {
    const path = `src/edge/console/${name}`;
    const digest = createHash("sha256").update(await readFile(new URL(path, root)));
    return `${digest.digest("hex")}  ${path}\n`;
  });
  return (await Promise.all(lines)).join("");
}

if (process.argv.includes("--check")) {
  const made = await readFile(digestFile, "utf8").catch(() => "");
  if (made === (await digests())) process.exit();
  console.error("The pictures in docs/pictures show an earlier console. Make them again: node scripts/pictures.mjs");
  process.exit(1);
}

const { launch } = await import("../tests/clients/browser/world.mjs");
const folder = await mkdtemp(`${tmpdir()}/tailwater-pictures-`);
const program = process.env.TAILWATER ?? fileURLToPath(new URL("target/debug/tailwater", root));
const children = [];

/** Starts the program, and returns what it prints after each of the words. */
async function start(args, ...words) {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  const found = [];
  for await (const line of createInterface(child.stdout)) {
    const word = words[found.length];
    if (line.startsWith(word)) found.push(line.slice(word.length));
    if (found.length === words.length) return found;
  }
  throw new Error(`${args[0]} did not start`);
}

/** A model that fails in the middle of its first answer, as an `exec` worker runs it. */
const MODEL = String.raw`
import json, os, sys, time
question = json.load(sys.stdin)["question"]
def say(text, channel="output", pause=0.05):
    for word in text.split(" "):
        print(json.dumps({"text": word + " ", "channel": channel}), flush=True)
        time.sleep(pause)
first = not os.path.exists(sys.argv[1])
open(sys.argv[1], "a").close()
say("They ask why the sky is blue. Rayleigh scattering: the intensity goes with the fourth power of the frequency, so short waves are scattered most. Mention sunsets, keep it short.", "reasoning")
say("Sunlight contains all colours. On its way through the air it meets molecules that are much smaller than the wavelength of light, and these scatter short waves far more than long ones: blue light about")
if first:
    time.sleep(2.2)
    sys.exit(75)
say("five times as much as red. So from every direction of the sky, blue light reaches your eye, while the rest goes straight on.\n\nIn the evening the light passes through much more air. Most of the blue is gone by then, and what is left is the orange and red of a sunset.", pause=0.06)
`;

try {
  const [nats, edge] = await start(
    ["up", "--listen", "127.0.0.1:0", "--data-dir", `${folder}/nats`, ...(process.env.NATS_SERVER ? ["--nats-server", process.env.NATS_SERVER] : [])],
    "nats ",
    "ready ",
  );
  const worker = ["worker", "--kind", "assistant", "--nats", nats, "exec", "--format", "ndjson", "--", "python3", "-c", MODEL];
  const browser = await launch();
  const pictures = {
    light: { viewport: { width: 1360, height: 1010 }, colorScheme: "light" },
    dark: { viewport: { width: 1360, height: 1010 }, colorScheme: "dark" },
    phone: { viewport: { width: 390, height: 844 }, colorScheme: "light" },
  };
  for (const [name, options] of Object.entries(pictures)) {
    const child = spawn(program, [...worker, `${folder}/${name}`], { stdio: "ignore" });
    children.push(child);
    const context = await browser.newContext(options);
    const page = await context.newPage();
    page.setDefaultTimeout(60_000);
    const kind = (kind) => page.waitForSelector(`#kind option[value=${kind}]`, { state: "attached" });
    await page.goto(edge);
    await kind("assistant");
    // Something for the list and the charts.
    const others = [{ words: 400, rate: 40 }, { words: 900, rate: 30 }, { words: 5 }, { words: "five" }, { words: 700, rate: 60 }];
    await page.evaluate(async (inputs) => {
      const { connect } = await import("/client.js");
      const tw = connect();
      for (const input of inputs) await tw.submit({ kind: "demo", input });
      const { jobs } = await tw.jobs({ limit: 2 });
      await tw.cancel(jobs[1].job).catch(() => {});
    }, others);
    await page.selectOption("#kind", "assistant");
    await page.fill("#input", JSON.stringify({ question: "Why is the sky blue?" }, null, 2));
    await page.click("#submit .primary");
    await page.waitForFunction(() => document.getElementById("log").textContent.includes("attempt 2 started"));
    await page.waitForFunction(() => document.getElementById("text").textContent.includes("blue light about five"));
    await page.click("#cut");
    await page.waitForTimeout(1200);
    await page.click("#cut");
    await page.waitForFunction(() => /Resumed/.test(document.getElementById("resume").textContent));
    await page.waitForFunction(() => document.getElementById("text").textContent.includes("In the evening"));
    await page.evaluate(() => document.activeElement.blur());
    // On a phone the page has scrolled to the job.
    await page.evaluate(() => scrollTo(0, 0));
    await page.mouse.move(0, 0);
    const path = fileURLToPath(new URL(`docs/pictures/console-${name}.png`, root));
    await page.screenshot({ path });
    console.log(`${path}: ${Math.round((await stat(path)).size / 1024)} KiB`);
    await context.close();
    child.kill();
  }
  await browser.close();
  await writeFile(digestFile, await digests());
} finally {
  children.forEach((child) => child.kill());
  await rm(folder, { recursive: true, force: true, maxRetries: 9 });
}

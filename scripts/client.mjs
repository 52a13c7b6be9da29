// Builds dist/ of the npm package in clients/typescript: one minified module, which the edge serves as well, and one for
// React. With --check it only compares them, checks the types, and measures the size. test.sh installs what it needs.
import { execFileSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const root = new URL("../", import.meta.url);
const folder = new URL("clients/typescript/", root);
const require = createRequire(new URL(".tools/node/package.json", root));
const { build } = require("esbuild");
const { minify } = require("terser");
/** In bytes, with gzip: what a page pays for the client. */
const SIZE_MAX = 6 * 1024;

async function built(name) {
  const bundle = await build({
    entryPoints: [fileURLToPath(new URL(`src/${name}`, folder))],
    bundle: true,
    external: ["react", "tailwater"],
    format: "esm",
    target: "es2022",
    write: false,
  });
  const options = { ecma: 2022, module: true, compress: { passes: 3, pure_getters: true, hoist_funs: true }, mangle: true };
  const { code } = await minify(bundle.outputFiles[0].text, options);
  return `${code}\n`;
}

const checks = process.argv.includes("--check");
for (const name of ["client.js", "react.js"]) {
  const file = new URL(`dist/${name}`, folder);
  const text = await built(name);
  const size = gzipSync(text, { level: 9 }).length;
  console.log(`${name}: ${text.length} bytes, ${size} with gzip`);
  if (size > SIZE_MAX) fail(`${name} has ${size} bytes with gzip; at most ${SIZE_MAX} are allowed`);
  // Webpack and Turbopack take it for a file to include.
  if (/new URL\([^)]*,import\.meta\.url\)/.test(text)) fail(`${name} has a URL that bundlers cannot resolve`);
  if (!checks) await writeFile(file, text);
  else if ((await readFile(file, "utf8")) !== text) fail(`${fileURLToPath(file)} is out of date: run node scripts/client.mjs`);
}
if (checks) {
  const tsc = require.resolve("typescript/package.json").replace("package.json", "bin/tsc");
  execFileSync(process.execPath, [tsc, "-p", fileURLToPath(folder)], { stdio: "inherit" });
}

function fail(why) {
  console.error(why);
  process.exit(1);
}

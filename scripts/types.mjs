// Generates the TypeScript types of the wire protocol from src/wire/schema/tailwater.schema.json. With --check it only
// compares them, and validates asyncapi.yaml. test.sh installs the libraries into .tools/node.
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = new URL("../", import.meta.url);
const schema = new URL("src/wire/schema/tailwater.schema.json", root);
const asyncapi = new URL("src/wire/schema/asyncapi.yaml", root);
const types = new URL("clients/typescript/src/wire.ts", root);
const require = createRequire(new URL(".tools/node/package.json", root));
const load = (name) => import(pathToFileURL(require.resolve(name)));

// A schema without a shape is any JSON. A default does not belong to the type.
function forTypeScript(value) {
  if (Array.isArray(value)) return value.map(forTypeScript);
  if (value === null || typeof value !== "object") return value;
  const { default: _, ...rest } = value;
  return Object.fromEntries(Object.entries(rest).map(([key, inner]) => [key, forTypeScript(inner)]));
}
function markAny(properties) {
  for (const property of Object.values(properties ?? {})) {
    if (Object.keys(property).every((key) => key === "description")) property.tsType = "unknown";
  }
}
function walk(value) {
  if (value === null || typeof value !== "object") return;
  markAny(value.properties);
  Object.values(value).forEach(walk);
}

const parsed = forTypeScript(JSON.parse(await readFile(schema, "utf8")));
walk(parsed);
const { compile } = await load("json-schema-to-typescript");
const text = await compile(parsed, "Tailwater", {
  additionalProperties: false,
  bannerComment: "// Written by scripts/types.mjs out of src/wire/schema/tailwater.schema.json.",
  style: { printWidth: 120 },
});

if (!process.argv.includes("--check")) {
  await writeFile(types, text);
} else {
  if ((await readFile(types, "utf8")) !== text) fail(`${fileURLToPath(types)} is out of date: run node scripts/types.mjs`);
  const { Parser, fromFile } = await load("@asyncapi/parser");
  const { document, diagnostics } = await fromFile(new Parser(), fileURLToPath(asyncapi)).parse();
  const errors = diagnostics.filter(({ severity }) => severity === 0);
  if (!document || errors.length) fail(`asyncapi.yaml: ${JSON.stringify(errors, null, 2)}`);
  const payloads = document.messages().all().map((message) => JSON.stringify(message.payload().json()));
  if (payloads.length !== 3 || payloads.some((payload) => payload.length < 200)) fail("asyncapi.yaml lost its schemas");
}

function fail(why) {
  console.error(why);
  process.exit(1);
}

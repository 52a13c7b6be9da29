// Prints a CycloneDX list of the crates in the program of a release: crates.mjs TARGET. It has no serial number, no path of this
// machine, and the time of SOURCE_DATE_EPOCH, so it is the same for each build of a commit. The list that maturin makes is not.
import { execFileSync } from "node:child_process";
import { readFile } from "node:fs/promises";

const [target] = process.argv.slice(2);
const root = new URL("../", import.meta.url);
// Without what only the compiler runs: macros, build scripts and tests.
const edges = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}\t{l}"];
const tree = execFileSync("cargo", ["tree", "--locked", "--target", target, ...edges], {
  cwd: root,
  encoding: "utf8",
  maxBuffer: 64 * 1024 * 1024,
});

const entries = (await readFile(new URL("Cargo.lock", root), "utf8")).split("[[package]]").slice(1);
const checksums = new Map(
  entries.map((entry) => {
    const field = (name) => entry.match(new RegExp(`^${name} = "(.*)"$`, "m"))?.[1];
    return [`${field("name")} ${field("version")}`, field("checksum")];
  }),
);

function component(type, line) {
  // `tokio v1.48.0<tab>MIT`; a crate that was listed before ends in ` (*)`.
  const [, name, version, license] = line.match(/^(\S+) v(\S+).*\t(.*?)(?: \(\*\))?$/);
  const purl = `pkg:cargo/${name}@${encodeURIComponent(version)}`;
  const checksum = checksums.get(`${name} ${version}`);
  return {
    type,
    "bom-ref": purl,
    name,
    version,
    ...(checksum && { hashes: [{ alg: "SHA-256", content: checksum }] }),
    // Old crates write `MIT/Apache-2.0`.
    ...(license && { licenses: [{ expression: license.replaceAll("/", " OR ") }] }),
    purl,
  };
}

const [program, ...lines] = tree.split("\n").filter((line) => line !== "");
const crates = new Map(lines.map((line) => component("library", line)).map((crate) => [crate.purl, crate]));
const bom = {
  bomFormat: "CycloneDX",
  specVersion: "1.5",
  version: 1,
  metadata: {
    timestamp: new Date(Number(process.env.SOURCE_DATE_EPOCH) * 1000).toISOString(),
    component: component("application", program),
  },
  components: [...crates.keys()].sort().map((purl) => crates.get(purl)),
};
process.stdout.write(`${JSON.stringify(bom, null, 2)}\n`);

// Prepares the npm packages of a release: npm.mjs VERSION PLATFORM CLIENT. PLATFORM is a folder with the program, CLIENT
// becomes a copy of clients/typescript that depends on the package of the platform. release.sh then packs both.
import { cp, readFile, writeFile } from "node:fs/promises";

const [version, platform, client] = process.argv.slice(2);
const folder = new URL("../clients/typescript/", import.meta.url);
const manifest = JSON.parse(await readFile(new URL("package.json", folder), "utf8"));
if (manifest.version !== version) throw new Error(`clients/typescript has the version ${manifest.version}, not ${version}`);

const name = "@tailwater/linux-x64";
const program = {
  name,
  version,
  description: "The program tailwater for Linux on x86-64, and a NATS server for `tailwater up`.",
  license: "MIT AND Apache-2.0",
  os: ["linux"],
  cpu: ["x64"],
  files: ["bin", "LICENSE-nats-server"],
};
await writeFile(`${platform}/package.json`, `${JSON.stringify(program, null, 2)}\n`);

for (const file of ["README.md", ...manifest.files]) {
  await cp(new URL(file, folder), `${client}/${file}`, { recursive: true });
}
// Optional: an application that only bundles the client works on every platform.
manifest.optionalDependencies = { [name]: version };
await writeFile(`${client}/package.json`, `${JSON.stringify(manifest, null, 2)}\n`);

// Prepares the npm packages of a release: npm.mjs VERSION FOLDER PLATFORM.... FOLDER/PLATFORM has the program of a platform, such
// as linux-x64. FOLDER/client becomes a copy of clients/typescript that depends on the packages of these platforms. release.sh
// then packs them all.
import { cp, readFile, writeFile } from "node:fs/promises";

const [version, target, ...platforms] = process.argv.slice(2);
const folder = new URL("../clients/typescript/", import.meta.url);
const manifest = JSON.parse(await readFile(new URL("package.json", folder), "utf8"));
if (manifest.version !== version) throw new Error(`clients/typescript has the version ${manifest.version}, not ${version}`);

const processors = { x64: "x86-64", arm64: "arm64" };
// Optional: an application that only bundles the client works on every platform.
manifest.optionalDependencies = {};
for (const platform of platforms) {
  const name = `@tailwater/${platform}`;
  const [os, cpu] = platform.split("-");
  const program = {
    name,
    version,
    description: `The program tailwater for Linux on ${processors[cpu]}, and a NATS server for \`tailwater up\`.`,
    license: "MIT AND Apache-2.0",
    os: [os],
    cpu: [cpu],
    files: ["bin", "LICENSE-nats-server"],
  };
  await writeFile(`${target}/${platform}/package.json`, `${JSON.stringify(program, null, 2)}\n`);
  manifest.optionalDependencies[name] = version;
}

for (const file of ["README.md", ...manifest.files]) {
  await cp(new URL(file, folder), `${target}/client/${file}`, { recursive: true });
}
await writeFile(`${target}/client/package.json`, `${JSON.stringify(manifest, null, 2)}\n`);

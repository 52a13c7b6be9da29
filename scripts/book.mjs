// Builds the book of docs/ with mdbook, which must be on PATH, into target/book, and checks every link in it. The chapters
// link to each other and to files of the tree as they do on a code host, so the tree's files are laid out in the same way.
import { execFileSync } from "node:child_process";
import { cp, mkdir, readFile, readdir, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../", import.meta.url));
const source = join(root, "target/book-source");
const book = join(root, "target/book");

const summary = await readFile(join(root, "docs/SUMMARY.md"), "utf8");
/** The text with each link replaced by what `change` makes of it. */
const withLinks = (text, change) => text.replace(/\]\(([^)\s]+)\)/g, (_, link) => `](${change(link)})`);

/** mdbook serves a README as the index of its folder, but does not change links to it. */
const asIndex = (link) => link.replace(/README\.md(?=#|$)/, "index.md");

const chapters = new Set();
const moved = withLinks(summary, (link) => {
  const chapter = normalize(join("docs", link));
  chapters.add(chapter);
  return asIndex(chapter);
});

// Every chapter, and every file or folder that one links to.
const files = new Set([...chapters, "docs/pictures"]);
for (const chapter of chapters) {
  const text = await readFile(join(root, chapter), "utf8");
  withLinks(text, (link) => {
    if (!/^(https?:|mailto:|#)/.test(link)) files.add(normalize(join(dirname(chapter), link.split("#")[0])));
    return link;
  });
}
await rm(source, { recursive: true, force: true });
for (const file of files) {
  await mkdir(dirname(join(source, file)), { recursive: true });
  await cp(join(root, file), join(source, file), { recursive: true });
}
for (const chapter of chapters) {
  const text = await readFile(join(root, chapter), "utf8");
  await writeFile(join(source, asIndex(chapter)), withLinks(text, asIndex));
}
await writeFile(join(source, "SUMMARY.md"), moved);
await cp(join(root, "docs/book.toml"), join(source, "book.toml"));
const unlisted = [...files].filter((file) => file.endsWith(".md") && !chapters.has(file));
const documents = (await readdir(join(root, "docs"))).filter((name) => name.endsWith(".md") && name !== "SUMMARY.md");
unlisted.push(...documents.map((name) => `docs/${name}`).filter((file) => !chapters.has(file)));
if (unlisted.length > 0) fail(`not in docs/SUMMARY.md: ${unlisted.join(", ")}`);

execFileSync("mdbook", ["build", source, "--dest-dir", book], { stdio: ["ignore", "ignore", "inherit"] });

// Each link of each page leads to a file of the book and, if it names one, to a heading there.
const pages = (await readdir(book, { recursive: true })).filter((name) => name.endsWith(".html"));
const texts = new Map();
for (const page of pages) texts.set(page, await readFile(join(book, page), "utf8"));
const broken = [];
let checked = 0;
for (const [page, text] of texts) {
  // A page for every address: its links are absolute.
  if (page === "404.html" || page === "toc.html") continue;
  for (const [, link] of text.matchAll(/(?:href|src|srcset)="([^"]+)"/g)) {
    if (/^(https?:|mailto:|data:|javascript:)/.test(link)) continue;
    const [path, heading] = decodeURI(link).split("#");
    const target = path ? normalize(join(dirname(page), path)) : page;
    checked += 1;
    const found = await stat(join(book, target)).catch(() => undefined);
    const headings = texts.get(target) ?? "";
    if (!found || (heading && headings && !headings.includes(`id="${heading}"`))) broken.push(`${page}: ${link}`);
  }
}
console.log(`${pages.length} pages, ${checked} links`);
if (broken.length > 0) fail(`broken links:\n${broken.join("\n")}`);
if (checked < 500) fail("too few links: they are written otherwise now");

function fail(why) {
  console.error(why);
  process.exit(1);
}

// The client's fold runs the cases that the edge's fold runs, too (src/wire/state.rs).
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { EMPTY, apply } from "../dist/client.js";

const folder = new URL("../../../tests/conformance/", import.meta.url);
let found = 0;
for (const file of readdirSync(folder)) {
  for (const { name, items, view } of JSON.parse(readFileSync(new URL(file, folder), "utf8"))) {
    found += 1;
    test(name, () => {
      const common = { job: "j", ts: 1, cursor: "c" };
      assert.deepEqual(items.reduce((view, item) => apply(view, { ...common, ...item }), EMPTY), view);
    });
  }
}
test("there are cases", () => assert.ok(found >= 16, `${found}`));

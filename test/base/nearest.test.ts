import assert from "node:assert/strict";
import { test } from "node:test";
import { nearest } from "../../src/base/nearest.ts";

test("a typing mistake leads to the name meant, a beginning to what it begins, anything else to nothing", () => {
  const known = ["blue", "green", "ingress", "web.1"];
  assert.equal(nearest("bleu", known), "blue");
  assert.equal(nearest("gren", known), "green");
  assert.equal(nearest("ing", known), "ingress");
  assert.equal(nearest("web", known), "web.1");
  assert.equal(nearest("database", known), undefined);
  // Of two letters one may be wrong, not both.
  assert.equal(nearest("xy", ["ab"]), undefined);
  assert.equal(nearest("", known), undefined);
});

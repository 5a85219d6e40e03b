import assert from "node:assert/strict";
import { test } from "node:test";
import { z } from "zod";
import { questionsOf } from "../../src/agent/questions.ts";
import { splitPort } from "../../src/cli/commands/trace.ts";

test("a peer's question is answered by its method, and anything else is refused with a code", async () => {
  const answer = questionsOf({
    double: (body) => 2 * z.object({ n: z.number() }).parse(body).n,
    later: () => Promise.resolve("soon"),
  });
  assert.equal(await answer({ method: "double", n: 4 }), 8);
  assert.equal(await answer({ method: "later" }), "soon");
  for (const body of [undefined, null, 7, {}, { method: "toString" }, { method: 1 }])
    await assert.rejects(answer(body), { code: "unknown-question" });
  await assert.rejects(answer({ method: "double", n: "x" }), { code: "bad-question" });
});

test("a trace's destination may carry a port", () => {
  assert.deepEqual(splitPort("redis"), { name: "redis", port: undefined });
  assert.deepEqual(splitPort("10.0.1.5:80"), { name: "10.0.1.5", port: 80 });
  assert.deepEqual(splitPort("[2001:db8::1]:80"), { name: "2001:db8::1", port: 80 });
  assert.deepEqual(splitPort("2001:db8::1"), { name: "2001:db8::1", port: undefined });
});

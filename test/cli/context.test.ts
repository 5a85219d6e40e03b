import assert from "node:assert/strict";
import { test } from "node:test";
import { NetError } from "../../src/base/error.ts";
import { exitCodeOf, parseDuration, parseLabels, parsePublish, UsageError } from "../../src/cli/context.ts";
import { renderTable, screenOf } from "../../src/cli/render.ts";

test("a published port is [IP:]PUBLISHED:TARGET[/tcp|udp]", () => {
  assert.deepEqual(parsePublish("8000:80"), {
    published: 8000,
    target: 80,
    protocol: "tcp",
    mode: "ingress",
  });
  assert.deepEqual(parsePublish("192.0.2.1:5300:53/udp"), {
    published: 5300,
    target: 53,
    protocol: "udp",
    mode: "ingress",
    address: "192.0.2.1",
  });
  assert.equal(parsePublish("[2001:db8::1]:80:80").address, "2001:db8::1");
  for (const wrong of ["80", "80:", "a:b", "1:2/sctp", ""])
    assert.throws(() => parsePublish(wrong), UsageError);
});

test("durations are seconds unless they say otherwise", () => {
  assert.deepEqual(
    ["10", "10s", "500ms", "2m", "1.5h"].map(parseDuration),
    [10_000, 10_000, 500, 120_000, 5_400_000],
  );
  assert.throws(() => parseDuration("soon"), UsageError);
});

test("a label is KEY=VALUE and the value may hold more equal signs", () => {
  assert.deepEqual(parseLabels(["a=b", "c=d=e"]), { a: "b", c: "d=e" });
  assert.throws(() => parseLabels(["=x"]), UsageError);
});

test("exit codes: 2 for wrong usage, 3 for an agent out of reach, 1 for the rest", () => {
  assert.equal(exitCodeOf(new UsageError("x")), 2);
  assert.equal(exitCodeOf(new NetError("agent-unreachable", "x")), 3);
  assert.equal(exitCodeOf(new NetError("network-unknown", "x")), 1);
});

test("a table is aligned, drops columns until it fits a terminal, and has no colour in a pipe", () => {
  const columns = [
    { title: "NAME", value: (row: string) => row, colour: () => "red" as const },
    { title: "WIDE", value: () => "x".repeat(60), drop: 1 },
    { title: "WIDER", value: () => "y".repeat(60), drop: 2 },
  ];
  const terminal = renderTable(["a", "bcdef"], columns, { columns: 80, colour: false });
  assert.match(terminal, /^NAME {3}WIDE\na {6}x+\nbcdef {2}x+\n$/);
  const pipe = renderTable(["a"], columns, screenOf({ isTTY: false }, {}));
  assert.ok(pipe.includes("WIDER") && !pipe.includes("\u001b"));
});

test("NO_COLOR turns colour off on a terminal, an empty one does not", () => {
  assert.equal(screenOf({ isTTY: true, columns: 80 }, { NO_COLOR: "1" }).colour, false);
  assert.equal(screenOf({ isTTY: true, columns: 80 }, { NO_COLOR: "" }).colour, true);
});

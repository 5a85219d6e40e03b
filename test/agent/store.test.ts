import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Store } from "../../src/agent/store.ts";
import { nodeId } from "../../src/base/id.ts";
import { NetError } from "../../src/base/error.ts";
import { encodeSnapshot } from "../../src/wire/state/snapshot.ts";

const SNAPSHOT = encodeSnapshot({ node: nodeId("node"), clock: 7, entries: [], externals: [], spaces: [] });

test("what was saved is there at the next start", () => {
  withDirectory((directory) => {
    const store = Store.open(directory);
    assert.equal(store.snapshot, undefined);
    store.save(SNAPSHOT);
    store.close();
    assert.equal(reopen(directory)?.value.clock, 7);
    assert.deepEqual(readdirSync(directory), ["state.bin"]);
  });
});

test("a save sets room aside for the next one, and gives it back at the end", () => {
  withDirectory((directory) => {
    const store = Store.open(directory);
    assert.equal(store.save(SNAPSHOT), undefined);
    const room = statSync(join(directory, "state.bin.new"));
    assert.ok(room.blocks * 512 > SNAPSHOT.length, `${room.blocks} blocks`);
    store.save(SNAPSHOT);
    assert.deepEqual(new Uint8Array(readFileSync(join(directory, "state.bin"))), SNAPSHOT);
    store.close();
    assert.ok(!existsSync(join(directory, "state.bin.new")));
  });
});

test("a second agent on one data directory is refused with the pid of the first", async () => {
  const directory = mkdtempSync(join(tmpdir(), "store-"));
  const holder = spawn("/bin/cat", { stdio: ["pipe", "ignore", "ignore"] });
  try {
    const stat = readFileSync(`/proc/${holder.pid}/stat`, "utf8");
    writeFileSync(
      join(directory, "lock"),
      `${holder.pid} ${stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]}`,
    );
    assert.throws(
      () => Store.open(directory),
      (error) =>
        error instanceof NetError &&
        error.code === "data-dir-in-use" &&
        error.message.includes(`pid ${holder.pid}`),
    );
    const ended = new Promise((resolve) => holder.once("exit", resolve));
    holder.stdin.end();
    await ended;
    Store.open(directory).close();
  } finally {
    holder.kill("SIGKILL");
    rmSync(directory, { recursive: true });
  }
});

test("the lock of a process that is gone, or whose pid another one has now, does not hold", () => {
  withDirectory((directory) => {
    for (const text of ["999999999 12", "1 1", `${process.pid} 1`, "", "nonsense"]) {
      writeFileSync(join(directory, "lock"), text);
      Store.open(directory).close();
      assert.equal(existsSync(join(directory, "lock")), false);
    }
  });
});

test("a damaged state is refused, kept aside, and the lock is given up", () => {
  withDirectory((directory) => {
    const damaged = Uint8Array.from(SNAPSHOT);
    damaged[20] = 0xff;
    for (const bytes of [damaged, new Uint8Array(0), SNAPSHOT.subarray(0, 30)]) {
      writeFileSync(join(directory, "state.bin"), bytes);
      assert.throws(
        () => Store.open(directory),
        (error) =>
          error instanceof NetError && error.code === "state-corrupt" && /kept as/.test(error.message),
      );
    }
    assert.deepEqual(readdirSync(directory), [
      "state.bin.corrupt-1",
      "state.bin.corrupt-2",
      "state.bin.corrupt-3",
    ]);
    assert.deepEqual(new Uint8Array(readFileSync(join(directory, "state.bin.corrupt-1"))), damaged);
    assert.equal(reopen(directory), undefined);
  });
});

test("a directory that cannot be made is refused, also where the kernel says that what is above does not exist", () => {
  for (const directory of ["/proc/nowhere", "/proc/nowhere/below", "/dev/null/below"]) {
    assert.throws(
      () => Store.open(directory),
      (error) =>
        error instanceof NetError &&
        error.code === "directory-failed" &&
        error.message.startsWith(`make directory ${directory}: `),
    );
  }
});

test("a save that a crash interrupts leaves the state before it", () => {
  withDirectory((directory) => {
    const store = Store.open(directory);
    store.save(SNAPSHOT);
    store.close();
    writeFileSync(join(directory, "state.bin.new"), "half of it".repeat(100));
    const next = Store.open(directory);
    assert.equal(next.snapshot?.value.clock, 7);
    next.save(SNAPSHOT);
    next.close();
    assert.equal(reopen(directory)?.value.clock, 7);
  });
});

function reopen(directory: string): Store["snapshot"] {
  const store = Store.open(directory);
  store.close();
  return store.snapshot;
}

function withDirectory(body: (directory: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), "store-"));
  try {
    body(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { connectUnix, listenUnix, type JsonConnection } from "../../src/transport/unix-socket.ts";

test("values cross in both directions, and the socket is the owner's alone", async () => {
  await withSocket(async (path) => {
    const server = await listenUnix(path, (connection) => {
      connection.onValue = (value) => connection.send({ echo: value });
    });
    assert.equal(statSync(path).mode & 0o777, 0o600);
    const client = await connectUnix(path);
    const answer = nextValue(client);
    client.send({ text: "ä".repeat(100_000) });
    assert.deepEqual(await answer, { echo: { text: "ä".repeat(100_000) } });
    client.destroy();
    server.close();
  });
});

test("a second listener is refused while the first one answers, and replaces a dead one's socket", async () => {
  await withSocket(async (path) => {
    const server = await listenUnix(path, () => undefined);
    await assert.rejects(
      listenUnix(path, () => undefined),
      /another netagent answers there/,
    );
    server.close();
    writeFileSync(path, "");
    const second = await listenUnix(path, () => undefined);
    second.close();
  });
});

test("a frame that is too long or no JSON closes the connection", async () => {
  await withSocket(async (path) => {
    const server = await listenUnix(path, () => undefined);
    for (const bytes of [Buffer.from([0xff, 0xff, 0xff, 0xff]), Buffer.from([0, 0, 0, 1, 0x7b])]) {
      const socket = connect(path);
      const closed = new Promise((resolve) => socket.once("close", resolve));
      socket.on("error", () => undefined);
      socket.write(bytes);
      await closed;
    }
    server.close();
  });
});

test("nobody there is one line with the cure", async () => {
  await assert.rejects(connectUnix("/nonexistent/netagent.sock"), /no such socket \(is netagent running\?/);
});

function nextValue(connection: JsonConnection): Promise<unknown> {
  return new Promise((resolve) => (connection.onValue = resolve));
}

async function withSocket(use: (path: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "netagent-test-"));
  try {
    await use(join(directory, "test.sock"));
  } finally {
    rmSync(directory, { recursive: true });
  }
}

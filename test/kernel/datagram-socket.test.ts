import assert from "node:assert/strict";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { test } from "node:test";
import { parseIp } from "../../src/base/ip.ts";
import { DatagramSocket } from "../../src/kernel/datagram-socket.ts";
import { Netns } from "../../src/kernel/netns.ts";

test("every one of many datagrams gets its own answer, at once or later", async () => {
  const server = listen();
  server.listen((bytes, reply) => {
    const text = Buffer.from(bytes).toString();
    // What is answered later must not lean on the bytes, which are the next batch's by then.
    if (text.startsWith("later")) setImmediate(() => reply(Buffer.from(`${text}!`)));
    else reply(Buffer.from(`${text}!`));
  });
  const clients = await Promise.all(Array.from({ length: 4 }, newClient));
  // Rounds that fit into every socket's buffer.
  for (let round = 0; round < 10; round++) {
    await Promise.all(
      clients.map(async (client, index) => {
        const texts = Array.from(
          { length: 20 },
          (_, i) => `${i % 3 === 0 ? "later" : "now"} ${index} ${round} ${i}`,
        );
        const answers = collect(client, texts.length);
        for (const text of texts) client.send(text, server.port, "127.0.0.1");
        assert.deepEqual(
          (await answers).map((bytes) => bytes.toString()).sort(),
          texts.map((text) => `${text}!`).sort(),
        );
      }),
    );
  }
  for (const client of clients) client.close();
  server.close();
});

test("empty and largest datagrams pass, longer ones are counted and dropped, and nothing follows a close", async () => {
  const server = listen();
  const lengths: number[] = [];
  let late: ((answer: Uint8Array) => void) | undefined;
  server.listen((bytes, reply) => {
    lengths.push(bytes.length);
    late = reply;
    reply(new Uint8Array(20_000));
  });
  const client = await newClient();
  const answers = collect(client, 3);
  for (const length of [0, 4096, 4097, 1]) client.send(new Uint8Array(length), server.port, "127.0.0.1");
  for (const answer of await answers) assert.equal(answer.length, 20_000);
  assert.deepEqual(lengths, [0, 4096, 1]);
  assert.equal(server.oversized, 1);
  late?.(new Uint8Array(70_000)); // no datagram is that long
  server.close();
  late?.(new Uint8Array(1));
  client.close();
});

function listen(): DatagramSocket {
  using here = Netns.current();
  return new DatagramSocket(here.bindUdp(parseIp("127.0.0.1"), { port: 0 }));
}

/** The next `count` datagrams. */
function collect(client: Socket, count: number): Promise<Buffer[]> {
  return new Promise((resolve) => {
    const got: Buffer[] = [];
    const take = (bytes: Buffer): void => {
      got.push(bytes);
      if (got.length < count) return;
      client.off("message", take);
      resolve(got);
    };
    client.on("message", take);
  });
}

async function newClient(): Promise<Socket> {
  const client = createSocket("udp4");
  client.bind(0, "127.0.0.1");
  await once(client, "listening");
  return client;
}

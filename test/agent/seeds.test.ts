import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:net";
import { test } from "node:test";
import { streamDecode, streamEncode, type Answer } from "dns-packet";
import { loadConfig } from "../../src/agent/config.ts";
import { checkedSeed, seedAddresses } from "../../src/agent/seeds.ts";
import { NetError } from "../../src/base/error.ts";

/** Loopback too, and nobody else's. */
const SERVER = "127.53.7.9";

test("a seed is HOST or HOST:PORT, perhaps behind the node's name", () => {
  for (const [text, name, host, port] of [
    ["web1", undefined, "web1", 7946],
    ["web1:7000", undefined, "web1", 7000],
    ["n1/192.0.2.1", "n1", "192.0.2.1", 7946],
    ["n1.dc/web1.example:7000", "n1.dc", "web1.example", 7000],
    ["n1/[2001:db8::1]:7000", "n1", "2001:db8::1", 7000],
    ["n1/2001:db8::1", "n1", "2001:db8::1", 7946],
  ] as const) {
    assert.deepEqual(checkedSeed(text, 7946, false), { name, host, port });
  }
  for (const text of ["/web1", "n1/", "n1/n2/web1", "web1:0", ""]) {
    assert.throws(() => checkedSeed(text, 7946, false), NetError, text);
  }
});

test("where node names are required an address alone is refused, and the cure is said", () => {
  assert.equal(checkedSeed("n1/web1", 7946, true).name, "n1");
  assert.throws(() => checkedSeed("web1:7000", 7946, true), /write NAME\/web1:7000/);
  const words = ["--advertise-addr", "192.0.2.1", "--require-node-names", "--join"];
  assert.deepEqual(loadConfig([...words, "n1/192.0.2.2"], "0").join, ["n1/192.0.2.2"]);
  assert.throws(() => loadConfig([...words, "192.0.2.2"], "0"), /node names are required/);
});

test("a name with a dot is also asked for over TCP, and every address of both families is found", async () => {
  const many = Array.from({ length: 60 }, (_, i) => `192.0.2.${i + 1}`);
  await using server = await nameServer((type): Answer[] => {
    const name = "seeds.invalid";
    if (type === "AAAA") return [{ type, name, ttl: 5, data: "2001:db8::1" }];
    const alias: Answer = { type: "CNAME", name, ttl: 5, data: "real.invalid" };
    return [alias, ...many.map((data): Answer => ({ type: "A", name: "real.invalid", ttl: 5, data }))];
  });
  const found = await seedAddresses({ host: "seeds.invalid", port: 7000 }, [server.address]);
  assert.deepEqual(
    found,
    [...many, "2001:db8::1"].map((ip) => ({ ip, port: 7000 })),
  );
  assert.deepEqual(server.asked.sort(), ["A seeds.invalid", "AAAA seeds.invalid"]);
});

test("what neither the system nor the server knows is an error that names it", async () => {
  await using server = await nameServer(() => []);
  const unknown = seedAddresses({ host: "nobody.invalid", port: 1 }, [server.address]);
  await assert.rejects(unknown, /look up nobody\.invalid/);
  const closed = seedAddresses({ host: "nobody.invalid", port: 1 }, ["127.53.7.10"]);
  await assert.rejects(closed, /look up nobody\.invalid/);
});

test("an address is itself and nobody is asked", async () => {
  await using server = await nameServer(() => []);
  for (const host of ["192.0.2.1", "2001:db8::1"])
    assert.deepEqual(await seedAddresses({ host, port: 9 }, [server.address]), [{ ip: host, port: 9 }]);
  assert.deepEqual(server.asked, []);
});

async function nameServer(answersTo: (type: string) => Answer[]) {
  const asked: string[] = [];
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.on("data", (bytes) => {
      const query = streamDecode(bytes);
      const [question] = query.questions ?? [];
      assert.ok(question !== undefined);
      asked.push(`${question.type} ${question.name}`);
      const { id } = query;
      socket.write(
        streamEncode({
          type: "response",
          ...(id === undefined ? {} : { id }),
          questions: [question],
          answers: answersTo(question.type),
        }),
      );
    });
  });
  server.listen(53, SERVER);
  await once(server, "listening");
  return {
    address: SERVER,
    asked,
    async [Symbol.asyncDispose]() {
      server.close();
      await once(server, "close");
    },
  };
}

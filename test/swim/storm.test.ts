import assert from "node:assert/strict";
import { test } from "node:test";
import { ipToBytes, parseIp, type SocketAddr } from "../../src/base/ip.ts";
import { after } from "../../src/base/time.ts";
import type { Alive, MemberlistMessage } from "../../src/wire/memberlist/message.ts";
import { LoneNode, sent, VSN } from "./lone-node.ts";

/** Large enough that a broadcast is sent 4 · ⌈log10 301⌉ = 12 times. */
const MEMBERS = 300;

test("a single death in a large cluster is told as often as memberlist tells it, however often it is heard", () => {
  const node = crowd();
  const death = { type: "dead", incarnation: 1, node: "m7", from: "m9" } as const;
  for (let teller = 0; teller < 10; teller++) hear(node, teller, death);
  assert.equal(told(node, 5_000, "dead").get("m7"), 12);
});

test("in a mass failure each accusation is passed on once, and a death half as often as else", () => {
  const node = crowd();
  for (let gone = 100; gone < 200; gone++) hear(node, 1, accusation(gone, "m1"));
  told(node, 4_000, "suspect");
  hear(node, 1, accusation(201, "m1"));
  assert.equal(told(node, 4_000, "suspect").get("m201"), 3);
  hear(node, 2, accusation(201, "m2"));
  assert.equal(told(node, 4_000, "suspect").get("m201"), 3);
  hear(node, 3, accusation(202, "m3"));
  for (let teller = 4; teller < 7; teller++) hear(node, teller, accusation(202, "m3"));
  assert.equal(told(node, 4_000, "suspect").get("m202"), undefined, "heard as often as it would be told");
  const death = { type: "dead", incarnation: 1, node: "m201", from: "m9" } as const;
  for (let teller = 1; teller < 4; teller++) hear(node, teller, death);
  assert.equal(told(node, 4_000, "dead").get("m201"), 12 / 2 - 2, "two told us again");
});

test("in a mass failure gossip goes to those who can hear it", () => {
  const node = crowd();
  for (let gone = 100; gone < 200; gone++) hear(node, 1, accusation(gone, "m1"));
  const to = new Set(gossip(node, 3_000).map((packet) => packet.to));
  assert.ok(to.size > 10, `${to.size}`);
  for (let gone = 100; gone < 200; gone++) assert.ok(!to.has(place(gone).ip), `m${gone}`);
});

test("in a large cluster a trickle goes at memberlist's pace, a flood at ours", () => {
  const node = crowd();
  hear(node, 1, aliveOf(7, 2));
  const slow = packets(node, 2_000);
  node.advance(20_000);
  for (let number = 0; number < 100; number++) hear(node, 1, aliveOf(number, 3, Uint8Array.of(number)));
  const fast = packets(node, 1_000);
  assert.ok(slow <= 3 * 11, `${slow} packets in 2 s`);
  assert.ok(fast >= 3 * 15, `${fast} packets in 1 s`);
});

test("a storm of newcomers is followed by an exchange, and one that brings news by another", () => {
  const node = crowd();
  node.advance(5_000);
  for (let number = 300; number < 340; number++) hear(node, 1, aliveOf(number, 1));
  const [first] = exchanges(node, 6_000);
  assert.ok(first !== undefined, "a few seconds after the last of them");
  const { name, addr, meta, vsn, port } = { ...aliveOf(500, 1), name: "m500" };
  const nodes = [{ name, addr, meta, vsn, port, incarnation: 1, state: "alive" as const }];
  node.feed({ type: "push-pull-reply", exchange: first, nodes });
  const [second] = exchanges(node, 6_000);
  assert.ok(second !== undefined, "it brought somebody: gossip may have missed more");
  node.feed({ type: "push-pull-reply", exchange: second, nodes });
  assert.deepEqual(exchanges(node, 60_000), [], "it brought nobody");
});

test("many deaths are followed by an exchange, and whose death was missed is looked at at once", () => {
  const node = crowd();
  node.advance(5_000);
  for (let gone = 100; gone < 140; gone++) {
    hear(node, 1, { type: "dead", incarnation: 1, node: `m${gone}`, from: "m1" });
  }
  const [first] = exchanges(node, 6_000);
  assert.ok(first !== undefined, "a few seconds after the last of them");
  const { addr, meta, vsn, port } = aliveOf(250, 1);
  const gone = { name: "m250", addr, meta, vsn, port, incarnation: 1, state: "dead" as const };
  node.feed({ type: "push-pull-reply", exchange: first, nodes: [gone] });
  assert.equal(node.swim.member("m250")?.state, "suspect", "no exchange kills");
  const effects = node.advance(1);
  assert.ok(
    sent(effects).some(({ to, messages }) => to === place(250).ip && messages[0]?.type === "ping"),
    "it is asked",
  );
  node.advance(1_000);
  assert.equal(node.swim.member("m250")?.state, "dead", "it did not answer");
});

test("one exchange too few: after a storm's, a single newcomer or death is followed by one more", () => {
  const node = crowd();
  node.advance(5_000);
  for (let number = 300; number < 340; number++) hear(node, 1, aliveOf(number, 1));
  assert.equal(exchanges(node, 6_000).length, 1);
  hear(node, 1, aliveOf(340, 1));
  assert.equal(exchanges(node, 6_000).length, 1, "a newcomer");
  hear(node, 1, { type: "dead", incarnation: 1, node: "m7", from: "m1" });
  assert.equal(exchanges(node, 6_000).length, 1, "a death");
  node.advance(20_000);
  hear(node, 1, aliveOf(341, 1));
  assert.deepEqual(exchanges(node, 20_000), [], "long after it");
});

test("after a storm a newcomer is told as often as memberlist tells it", () => {
  const alive = (node: LoneNode): number => told(node, 1_500, "alive").get("m400") ?? 0;
  const calm = crowd();
  hear(calm, 1, aliveOf(400, 1));
  assert.equal(alive(calm), 12);
  const node = crowd();
  for (let number = 300; number < 350; number++) hear(node, 1, aliveOf(number, 1));
  hear(node, 1, aliveOf(400, 1));
  assert.equal(alive(node), 12 / 2, "one of many");
  node.advance(5_000);
  hear(node, 1, aliveOf(401, 1));
  assert.equal(told(node, 1_500, "alive").get("m401"), 12);
});

test("whoever was cut off does not make us suspect all on this side", () => {
  const node = crowd();
  const dead = (numbers: readonly number[]) =>
    numbers.map((number) => {
      const { node: name, addr, port, meta, vsn } = aliveOf(number, 1);
      return { name, addr, port, meta, vsn, incarnation: 1, state: "dead" as const };
    });
  const suspects = (): string[] =>
    [...node.swim.members()].flatMap(({ name, state }) => (state === "suspect" ? [name] : []));
  const half = dead(Array.from({ length: 150 }, (_, number) => number));
  node.feed({ type: "push-pull-request", stream: 3, from: place(200), join: false, nodes: half });
  assert.deepEqual(suspects(), []);
  node.feed({ type: "push-pull-request", stream: 5, from: place(200), join: false, nodes: dead([7, 8]) });
  assert.deepEqual(suspects().sort(), ["m7", "m8"]);
});

/** Nobody is probed, so that all that is sent is gossip. */
function crowd(): LoneNode {
  const node = new LoneNode({ probeIntervalMs: 1e9, tcpPing: false });
  const nodes = Array.from({ length: MEMBERS }, (_, number) => aliveOf(number, 1)).map(
    ({ node: name, incarnation, addr, port, meta, vsn }) => ({
      ...{ name, incarnation, addr, port, meta, vsn },
      state: "alive" as const,
    }),
  );
  node.feed({ type: "push-pull-request", stream: 1, from: place(0), join: false, nodes });
  node.advance(30_000);
  assert.equal(node.swim.queueLength, 0);
  return node;
}

function place(number: number): SocketAddr {
  return { ip: parseIp(`10.1.${number >> 8}.${number & 255}`), port: 7946 };
}

function aliveOf(number: number, incarnation: number, meta = new Uint8Array(0)): Alive {
  const addr = ipToBytes(place(number).ip);
  return { type: "alive", node: `m${number}`, incarnation, addr, port: 7946, meta, vsn: VSN };
}

function accusation(number: number, from: string): MemberlistMessage {
  return { type: "suspect", incarnation: 1, node: `m${number}`, from };
}

function hear(node: LoneNode, teller: number, message: MemberlistMessage): void {
  node.feed({ type: "packet", from: place(teller), messages: [message] });
}

/** How often each member was told of in messages of this type. */
function told(node: LoneNode, forMs: number, type: "alive" | "suspect" | "dead"): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { messages } of gossip(node, forMs)) {
    for (const message of messages) {
      if (message.type === type) counts.set(message.node, (counts.get(message.node) ?? 0) + 1);
    }
  }
  return counts;
}

/** What is sent, without pings: the dead and the suspected get those together with what is said of them. */
function gossip(node: LoneNode, forMs: number): ReturnType<typeof sent> {
  return sent(node.advance(forMs)).filter(({ messages }) => messages.every(({ type }) => type !== "ping"));
}

function packets(node: LoneNode, forMs: number): number {
  return gossip(node, forMs).length;
}

/** Exchanges begun within the time, up to the first. */
function exchanges(node: LoneNode, withinMs: number): number[] {
  const end = after(node.now, withinMs);
  while (node.now < end) {
    const begun = node
      .advance(100)
      .flatMap((effect) => (effect.type === "push-pull" ? [effect.exchange] : []));
    if (begun.length > 0) return begun;
  }
  return [];
}

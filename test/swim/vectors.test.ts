import assert from "node:assert/strict";
import { test } from "node:test";
import { fromHex, toHex } from "../../src/base/bytes.ts";
import { ipToBytes, parseIp } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { instant, type Instant } from "../../src/base/time.ts";
import type { SwimEffect } from "../../src/swim/boundary.ts";
import { LAN, swimConfig, type SwimConfig } from "../../src/swim/config.ts";
import { Swim } from "../../src/swim/swim.ts";
import { decodeMessage, type MemberlistMessage } from "../../src/wire/memberlist/message.ts";
import type { PushPullNode } from "../../src/wire/memberlist/push-pull.ts";
import { loadVectors } from "../vectors/load.ts";

const STRANGER = { ip: parseIp("192.0.2.99"), port: 7946 };
const STATES = ["alive", "suspect", "dead", "left"] as const;

for (const vector of loadVectors<BehaviourVector>("memberlist-behaviour.jsonl")) {
  test(`as memberlist does, ${vector.name}: ${vector.description}`, () => {
    const node = new Node({ deadNodeReclaimMs: vector.name.includes("reclaim") ? 50 : 0 });
    for (const member of vector.before) if (member.Name !== "local") node.know(member);
    if (vector.name.startsWith("alive_addr_reclaim")) {
      node.now = instant(vector.name.endsWith("early") ? 49 : 51);
    }
    // Our leave is one step: the flag, and the death that the vector feeds in.
    const leaving = vector.name.endsWith("_leaving");
    const left = leaving ? node.leave() : undefined;
    for (const step of vector.steps) {
      const bytes = fromHex(step.hex.replace("hex:", ""));
      const { events, broadcasts } =
        vector.name === "dead_self_leaving" && left !== undefined ? left : node.packet(bytes);
      assert.deepEqual(events, step.events, "events");
      assert.deepEqual(broadcasts, step.broadcasts.map(plain), "broadcasts");
      assert.equal(node.swim.healthScore, step.health, "health");
      for (const expected of step.after) {
        const member = node.swim.member(expected.Name);
        assert.ok(member, `${expected.Name} is known`);
        assert.equal(toHex(member.addr), toHex(ipToBytes(parseIp(expected.Addr))));
        assert.equal(member.port, expected.Port);
        assert.equal(member.incarnation, expected.Incarnation);
        assert.equal(
          member.state,
          leaving && expected.Name === "local" ? "left" : STATES[expected.State],
          expected.Name,
        );
        assert.equal(toHex(member.meta), (expected.Meta ?? "").replace("hex:", ""));
        assert.deepEqual([...member.vsn], expected.Vsn);
      }
      assert.equal(node.swim.size, vector.numNodes);
      for (const timer of step.timers) {
        assert.deepEqual(node.swim.suspicion(timer.node), {
          confirmations: timer.confirmations,
          wanted: timer.k,
          minMs: timer.min_ms,
          maxMs: timer.max_ms,
        });
      }
    }
  });
}

for (const vector of loadVectors<MergeVector>("memberlist-merge.jsonl")) {
  const { local, localInc, remote, remoteInc } = vector;
  test(`merging '${remote}' ${remoteInc} into '${local}' ${localInc} does as memberlist`, () => {
    const node = new Node({});
    const n1 = { Name: "n1", Addr: "10.0.0.1", Port: 7946, Meta: null, Vsn: [1, 5, 2, 0, 0, 0] };
    const state = STATES.findIndex((name) => name === local);
    if (state >= 0) node.know({ ...n1, Incarnation: localInc, State: state });
    const { events, broadcasts } = node.merge({
      name: "n1",
      addr: ipToBytes(parseIp("10.0.0.1")),
      port: 7946,
      meta: new Uint8Array(0),
      incarnation: remoteInc,
      state: remote,
      vsn: Uint8Array.of(1, 5, 2, 0, 0, 0),
    });
    assert.deepEqual(events, vector.events);
    assert.deepEqual(broadcasts, vector.broadcasts.map(plain));
    const member = node.swim.member("n1");
    assert.equal(member?.state ?? "unknown", vector.after);
    if (member !== undefined) assert.equal(member.incarnation, vector.afterInc);
  });
}

interface VectorMember {
  readonly Name: string;
  readonly Addr: string;
  readonly Port: number;
  readonly Meta: string | null;
  readonly Incarnation: number;
  readonly State: number;
  readonly Vsn: readonly number[];
}

interface VectorMessage {
  readonly kind: string;
  readonly fields: Readonly<Record<string, string | number | null>>;
}

interface BehaviourVector {
  readonly name: string;
  readonly description: string;
  readonly numNodes: number;
  readonly before: readonly VectorMember[];
  readonly steps: readonly {
    readonly hex: string;
    readonly events: readonly string[];
    readonly broadcasts: readonly VectorMessage[];
    readonly health: number;
    readonly after: readonly VectorMember[];
    readonly timers: readonly {
      readonly node: string;
      readonly k: number;
      readonly confirmations: number;
      readonly min_ms: number;
      readonly max_ms: number;
    }[];
  }[];
}

interface MergeVector {
  readonly local: string;
  readonly localInc: number;
  readonly remote: "alive" | "suspect" | "dead" | "left";
  readonly remoteInc: number;
  readonly after: string;
  readonly afterInc: number;
  readonly events: readonly string[];
  readonly broadcasts: readonly VectorMessage[];
}

interface Step {
  readonly events: string[];
  readonly broadcasts: Record<string, string | number>[];
}

/** A node called "local" at 127.0.0.1:7946, as in the vectors. */
class Node {
  readonly swim: Swim;
  now: Instant = instant(0);

  constructor(settings: Partial<SwimConfig>) {
    this.swim = new Swim({
      name: "local",
      address: { addr: ipToBytes(parseIp("127.0.0.1")), port: 7946 },
      meta: new Uint8Array(0),
      vsn: Uint8Array.of(1, 5, 2, 0, 0, 0),
      config: swimConfig(LAN, settings),
      random: seededRandom(1),
      userBroadcasts: { length: 0, take: () => [] },
    });
    this.swim.handle({ type: "start" }, this.now);
  }

  know(member: VectorMember): void {
    const { Name: node, Incarnation: incarnation, Port: port } = member;
    const addr = ipToBytes(parseIp(member.Addr));
    const meta = fromHex((member.Meta ?? "").replace("hex:", ""));
    this.#messages({ type: "alive", incarnation, node, addr, port, meta, vsn: Uint8Array.from(member.Vsn) });
    const state = STATES[member.State];
    if (state === "suspect") this.#messages({ type: "suspect", incarnation, node, from: "first" });
    if (state === "dead") this.#messages({ type: "dead", incarnation, node, from: "first" });
    if (state === "left") this.#messages({ type: "dead", incarnation, node, from: node });
    assert.equal(this.swim.member(node)?.state, state);
  }

  packet(bytes: Uint8Array): Step {
    return this.#step(() => this.#messages(decodeMessage(bytes)));
  }

  merge(remote: PushPullNode): Step {
    const nodes = [remote];
    return this.#step(() =>
      this.swim.handle(
        { type: "push-pull-request", stream: 1, from: STRANGER, join: false, nodes },
        this.now,
      ),
    );
  }

  leave(): Step {
    return this.#step(() => this.swim.handle({ type: "leave", timeoutMs: 1000 }, this.now));
  }

  #messages(...messages: MemberlistMessage[]): SwimEffect[] {
    return this.swim.handle({ type: "packet", from: STRANGER, messages }, this.now);
  }

  #step(run: () => SwimEffect[]): Step {
    const before = new Set(this.swim.queued());
    const events = run().flatMap(eventText);
    const added = this.swim.queued().filter((payload) => !before.has(payload));
    return { events, broadcasts: added.map((payload) => flat(decodeMessage(payload))) };
  }
}

function eventText(effect: SwimEffect): string[] {
  if (effect.type === "member-joined") return [`join ${effect.member.name}`];
  if (effect.type === "member-left") return [`leave ${effect.member.name}`];
  if (effect.type === "member-updated") return [`update ${effect.member.name}`];
  if (effect.type === "member-conflict") return [`conflict ${effect.member.name}`];
  return [];
}

function flat(message: MemberlistMessage): Record<string, string | number> {
  const fields: Record<string, string | number> = {};
  for (const [key, value] of Object.entries(message))
    fields[key] = value instanceof Uint8Array ? toHex(value) : value;
  return fields;
}

function plain({ kind, fields }: VectorMessage): Record<string, string | number> {
  const out: Record<string, string | number> = { type: kind };
  for (const [key, value] of Object.entries(fields)) {
    const name = key.charAt(0).toLowerCase() + key.slice(1);
    out[name] = value === null ? "" : typeof value === "string" ? value.replace(/^hex:/, "") : value;
  }
  return out;
}

import assert from "node:assert/strict";
import { ipToBytes, parseIp, type SocketAddr } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { after, instant, type Instant } from "../../src/base/time.ts";
import type { SwimEffect, SwimInput, UserBroadcasts } from "../../src/swim/boundary.ts";
import { LAN, swimConfig, type SwimConfig } from "../../src/swim/config.ts";
import { Swim } from "../../src/swim/swim.ts";
import { decodeMessage, type Alive, type MemberlistMessage } from "../../src/wire/memberlist/message.ts";
import type { PushPullNode } from "../../src/wire/memberlist/push-pull.ts";

type Of<T extends SwimEffect["type"]> = Extract<SwimEffect, { type: T }>;

export const VSN = Uint8Array.of(1, 5, 2, 0, 0, 0);
export const NO_USER_BROADCASTS: UserBroadcasts = { length: 0, take: () => [] };

export function addressOf(number: number): SocketAddr {
  return { ip: parseIp(`10.0.0.${number}`), port: 7946 };
}

export function aliveOf(number: number, incarnation = 1, changes: Partial<Alive> = {}): Alive {
  const addr = ipToBytes(addressOf(number).ip);
  const meta = new Uint8Array(0);
  return { type: "alive", node: `n${number}`, incarnation, addr, port: 7946, meta, vsn: VSN, ...changes };
}

export function nodeOf(number: number, changes: Partial<PushPullNode> = {}): PushPullNode {
  const { node: name, addr, port, meta, vsn, incarnation } = aliveOf(number);
  return { name, addr, port, meta, vsn, incarnation, state: "alive", ...changes };
}

/** One node, "n0" at 10.0.0.200:7946, whose world is the test: what it wants done is looked at and not done. */
export class LoneNode {
  readonly swim: Swim;
  now: Instant = instant(0);

  constructor(settings: Partial<SwimConfig> = {}, userBroadcasts = NO_USER_BROADCASTS, profile = LAN) {
    this.swim = new Swim({
      name: "n0",
      address: { addr: ipToBytes(addressOf(200).ip), port: 7946 },
      meta: new Uint8Array(0),
      vsn: VSN,
      config: swimConfig(profile, settings),
      random: seededRandom(7),
      userBroadcasts,
    });
    this.feed({ type: "start" });
  }

  feed(input: SwimInput): SwimEffect[] {
    return this.swim.handle(input, this.now);
  }

  /** Messages in one packet from member `from`. */
  hear(from: number, ...messages: MemberlistMessage[]): SwimEffect[] {
    return this.feed({ type: "packet", from: addressOf(from), messages });
  }

  /** Makes members 1 … `count` known and alive, and forgets that they are news. */
  meet(count: number): void {
    for (let number = 1; number <= count; number++) this.hear(number, aliveOf(number));
    this.advance(900);
  }

  /** Lets time pass, waking it whenever it asks for that. */
  advance(ms: number): SwimEffect[] {
    const end = after(this.now, ms);
    const effects: SwimEffect[] = [];
    for (;;) {
      const next = this.swim.nextWakeup();
      if (next === undefined || next > end) break;
      if (next > this.now) this.now = next;
      effects.push(...this.feed({ type: "wake" }));
    }
    this.now = end;
    return effects;
  }

  /** Lets time pass until it pings somebody directly, and says whom. */
  untilProbe(): { readonly target: number; readonly seqNo: number; readonly effects: SwimEffect[] } {
    for (let waited = 0; waited < 20_000; waited += 10) {
      const effects = this.advance(10);
      for (const effect of only(effects, "send")) {
        const message = decodeMessage(effect.parts[0] ?? new Uint8Array(0));
        if (message.type === "ping")
          return { target: Number(message.node.slice(1)), seqNo: message.seqNo, effects };
      }
    }
    throw new Error("no probe within 20 s");
  }
}

export function only<T extends SwimEffect["type"]>(effects: readonly SwimEffect[], type: T): Of<T>[] {
  return effects.filter((effect): effect is Of<T> => effect.type === type);
}

export function one<T extends SwimEffect["type"]>(effects: readonly SwimEffect[], type: T): Of<T> {
  const [first, ...others] = only(effects, type);
  assert.ok(
    first !== undefined && others.length === 0,
    `one ${type} in ${effects.map((effect) => effect.type).join()}`,
  );
  return first;
}

/** Everything sent, decoded, with where it went. */
export function sent(
  effects: readonly SwimEffect[],
): { readonly to: string; readonly messages: MemberlistMessage[] }[] {
  return only(effects, "send").map(({ to, parts }) => ({
    to: to.ip,
    messages: parts.map((part) => decodeMessage(part)),
  }));
}

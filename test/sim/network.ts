import { randomInt, type Random } from "../../src/base/random.ts";

export interface NetworkConditions {
  /** Probability that a packet, or one direction of a TCP segment, is lost. */
  loss: number;
  /** One way, plus up to `jitterMs` more at random: jitter above the packet spacing reorders. */
  latencyMs: number;
  jitterMs: number;
  duplication: number;
  /** Larger datagrams vanish, as where fragments are filtered. */
  mtu: number;
}

export const GOOD_NETWORK: NetworkConditions = {
  loss: 0,
  latencyMs: 0.3,
  jitterMs: 0.4,
  duplication: 0,
  mtu: 65_535,
};

/** Which hosts reach which, and how well. Hosts are numbers. */
export class Network {
  readonly conditions: NetworkConditions;
  readonly #random: Random;
  /** Hosts in different groups do not reach each other. */
  readonly #group: number[] = [];
  /** "from>to" cut, whatever the way back does. */
  readonly #cut = new Set<string>();
  readonly #loss = new Map<number, number>();

  constructor(random: Random, conditions: Partial<NetworkConditions>) {
    this.#random = random;
    this.conditions = { ...GOOD_NETWORK, ...conditions };
  }

  reaches(from: number, to: number): boolean {
    if ((this.#group[from] ?? 0) !== (this.#group[to] ?? 0)) return false;
    return this.#cut.size === 0 || !this.#cut.has(`${from}>${to}`);
  }

  /** Those not named stay in group 0. */
  partition(groups: readonly (readonly number[])[]): void {
    this.#group.length = 0;
    groups.forEach((hosts, index) => {
      for (const host of hosts) this.#group[host] = index + 1;
    });
  }

  cut(from: number, to: number): void {
    this.#cut.add(`${from}>${to}`);
  }

  /** Loss of everything to and from one host, on top of the rest. */
  impair(host: number, loss: number): void {
    this.#loss.set(host, loss);
  }

  heal(): void {
    this.#group.length = 0;
    this.#cut.clear();
    this.#loss.clear();
  }

  loses(from: number, to: number): boolean {
    const { loss } = this.conditions;
    if (loss > 0 && this.#random.next() < loss) return true;
    if (this.#loss.size === 0) return false;
    return (
      this.#random.next() < (this.#loss.get(from) ?? 0) || this.#random.next() < (this.#loss.get(to) ?? 0)
    );
  }

  delayMs(): number {
    return this.conditions.latencyMs + this.#random.next() * this.conditions.jitterMs;
  }

  duplicates(): boolean {
    return this.conditions.duplication > 0 && this.#random.next() < this.conditions.duplication;
  }

  /** What retransmissions of `segments` segments add: rounds of 200, 400, 800 … ms until all are through. */
  retransmissionMs(from: number, to: number, segments: number): number {
    let left = Math.min(segments, 32);
    let delayMs = 0;
    for (let round = 0; left > 0 && round < 8; round++) {
      let lost = 0;
      for (let i = 0; i < left; i++) if (this.loses(from, to)) lost++;
      if (lost > 0) delayMs += 200 * 2 ** round;
      left = lost;
    }
    return delayMs;
  }

  pick(bound: number): number {
    return randomInt(this.#random, bound);
  }
}

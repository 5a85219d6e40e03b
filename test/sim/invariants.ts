import assert from "node:assert/strict";
import { formatSocketAddr, type SocketAddr } from "../../src/base/ip.ts";
import type { Member } from "../../src/swim/member.ts";
import type { World } from "./world.ts";

/** What must hold at every moment of every run, whatever the faults. Call `check` now and then. */
export class Invariants {
  readonly #world: World;
  readonly #numbers = new Map<string, number>();
  readonly #placeNumbers = new Map<string, number>();
  /** The same by the address object, as members are looked at by the million. */
  readonly #places = new WeakMap<SocketAddr, number>();
  readonly #seen = new Map<string, Seen>();

  constructor(world: World) {
    this.#world = world;
    const earlier = world.onEvent;
    world.onEvent = (host, event) => {
      earlier?.(host, event);
      // Forgotten and learned anew: what was known of it before no longer counts.
      if (event.type !== "member-joined" || event.returned) return;
      this.#seen.get(`${host.node.name} ${host.life}`)?.forget(this.#numberOf(event.member.name));
    };
  }

  check(): void {
    for (const host of this.#world.hosts) {
      if (host.power === "killed" || host.power === "down") continue;
      const { node } = host;
      assert.equal(node.drops, 0, `${node.name}: everything sent decodes`);
      this.#incarnationsOnlyGrow(`${node.name} ${host.life}`, node.members());
      const hosts = this.#world.hosts.length;
      const { broadcasts = 0, streams = 0 } = node.queues();
      // One per name ever used here, and our own refutation.
      assert.ok(broadcasts <= 20 * hosts, `${node.name}: ${broadcasts} broadcasts wait`);
      assert.ok(streams <= 20 * hosts, `${node.name}: ${streams} streams are open`);
    }
  }

  #incarnationsOnlyGrow(observer: string, members: Iterable<Member>): void {
    let seen = this.#seen.get(observer);
    if (seen === undefined) this.#seen.set(observer, (seen = new Seen()));
    for (const { name, incarnation, address } of members) {
      const known = seen.see(this.#numberOf(name), this.#placeOf(address), incarnation);
      if (incarnation < known)
        assert.fail(`${observer}: ${name} went from incarnation ${known} to ${incarnation}`);
    }
  }

  #numberOf(name: string): number {
    return numbered(this.#numbers, name);
  }

  #placeOf(address: SocketAddr): number {
    let place = this.#places.get(address);
    if (place === undefined) {
      place = numbered(this.#placeNumbers, formatSocketAddr(address));
      this.#places.set(address, place);
    }
    return place;
  }
}

/** Where one process saw each member last, and in which incarnation: eight bytes each, as there may be thousands of both. */
class Seen {
  #words = new Uint32Array(0);

  /** The incarnation it was seen in before, at this place; 0 when it was not. */
  see(number: number, place: number, incarnation: number): number {
    const at = 2 * number;
    if (at >= this.#words.length) {
      const words = new Uint32Array(Math.max(64, 4 * (number + 1)));
      words.set(this.#words);
      this.#words = words;
    }
    const known = this.#words[at] === place ? (this.#words[at + 1] ?? 0) : 0;
    this.#words[at] = place;
    this.#words[at + 1] = incarnation;
    return known;
  }

  forget(number: number): void {
    if (2 * number < this.#words.length) this.#words.fill(0, 2 * number, 2 * number + 2);
  }
}

/** From 1; a new one when it has none. */
function numbered(numbers: Map<string, number>, key: string): number {
  const known = numbers.get(key);
  if (known !== undefined) return known;
  numbers.set(key, numbers.size + 1);
  return numbers.size;
}

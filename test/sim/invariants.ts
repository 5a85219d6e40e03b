import assert from "node:assert/strict";
import type { World } from "./world.ts";

/** What must hold at every moment of every run, whatever the faults. Call `check` now and then. */
export class Invariants {
  readonly #world: World;
  /** Per observing process and member: the place and the highest incarnation seen there. */
  readonly #seen = new Map<string, Map<string, { readonly place: string; readonly incarnation: number }>>();

  constructor(world: World) {
    this.#world = world;
    const earlier = world.onEvent;
    world.onEvent = (host, event) => {
      earlier?.(host, event);
      // Forgotten and learned anew: what was known of it before no longer counts.
      if (event.type !== "member-joined" || event.returned) return;
      this.#seen.get(`${host.node.name} ${host.life}`)?.delete(event.member.name);
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

  #incarnationsOnlyGrow(observer: string, members: ReturnType<World["hosts"][0]["node"]["members"]>): void {
    const before = this.#seen.get(observer);
    const after = new Map<string, { readonly place: string; readonly incarnation: number }>();
    for (const { name, incarnation, addr, port } of members) {
      const place = `${addr.join(".")}:${port}`;
      const known = before?.get(name);
      if (known !== undefined && known.place === place) {
        assert.ok(
          incarnation >= known.incarnation,
          `${observer}: ${name} went from incarnation ${known.incarnation} to ${incarnation}`,
        );
      }
      after.set(name, { place, incarnation });
    }
    this.#seen.set(observer, after);
  }
}

import type { NodeId, NodeName } from "../base/id.ts";
import { after, type Instant } from "../base/time.ts";

interface CapableMember {
  readonly id: NodeId;
  readonly shown: string;
  readonly since: Instant;
}

/** A restarted agent is a new member while its old name is still being suspected; a twin stays longer than that. */
const TWIN_MS = 60_000;

/** The capable members of the moment, by member name (new at every start) and by node id (which stays). */
export class Members {
  readonly #self: NodeId;
  readonly #byName = new Map<NodeName, CapableMember>();
  /** The latest name of each id: the one to talk to. */
  readonly #byId = new Map<NodeId, NodeName>();
  /** Since when each other member with our own id is known: asked for after every input, and hardly ever there. */
  readonly #twins = new Map<NodeName, Instant>();

  constructor(self: NodeId) {
    this.#self = self;
  }

  get size(): number {
    return this.#byId.size;
  }

  join(name: NodeName, id: NodeId, shown: string, now: Instant): void {
    const previous = this.#byName.get(name);
    if (previous !== undefined && previous.id !== id) this.leave(name);
    const since = previous?.since ?? now;
    this.#byName.set(name, { id, shown, since });
    if (id === this.#self) this.#twins.set(name, since);
    else this.#byId.set(id, name);
  }

  /** The id that cannot be reached any more, if that is what it means. */
  leave(name: NodeName): NodeId | undefined {
    const member = this.#byName.get(name);
    this.#byName.delete(name);
    this.#twins.delete(name);
    if (member === undefined || this.#byId.get(member.id) !== name) return undefined;
    this.#byId.delete(member.id);
    // The other name of a restarted node may have joined first.
    for (const [other, { id }] of this.#byName) if (id === member.id) this.#byId.set(id, other);
    return this.#byId.has(member.id) ? undefined : member.id;
  }

  nameOf(id: NodeId): NodeName | undefined {
    return this.#byId.get(id);
  }

  idOf(name: NodeName): NodeId | undefined {
    return this.#byName.get(name)?.id;
  }

  shownNameOf(id: NodeId): string | undefined {
    const name = this.#byId.get(id);
    return name && this.#byName.get(name)?.shown;
  }

  ids(): NodeId[] {
    return [...this.#byId.keys()].sort();
  }

  names(): NodeName[] {
    return [...this.#byId.values()];
  }

  /** When another member is known to have our node id, undefined if there is none. */
  twinAt(): Instant | undefined {
    if (this.#twins.size === 0) return undefined;
    return after(Math.min(...this.#twins.values()) as Instant, TWIN_MS);
  }
}

import type { NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import type { Member } from "../swim/member.ts";
import type { NodeFacts } from "./metadata.ts";

/** Facts of members that are forgotten are swept when there are so many more than members: names are fresh at each start. */
const MAX_STALE = 256;

/** What the netagents among the members say about themselves. Docker's and serf's say nothing we know. */
export class Netagents {
  readonly #facts = new Map<NodeName, NodeFacts>();
  readonly #members: { readonly size: number; member(name: string): Member | undefined };

  /** `members` is swim's list. */
  constructor(members: { readonly size: number; member(name: string): Member | undefined }) {
    this.#members = members;
  }

  get(name: NodeName): NodeFacts | undefined {
    return this.#facts.get(name);
  }

  has(name: NodeName): boolean {
    return this.#facts.has(name);
  }

  set(name: NodeName, facts: NodeFacts): void {
    this.#facts.set(name, facts);
    if (this.#facts.size <= this.#members.size + MAX_STALE) return;
    for (const known of this.#facts.keys()) {
      if (this.#members.member(known) === undefined) this.#facts.delete(known);
    }
  }

  /** Whether it was one. */
  delete(name: NodeName): boolean {
    return this.#facts.delete(name);
  }

  living(): NodeName[] {
    return [...this.#facts.keys()].filter((name) => this.#members.member(name)?.state === "alive");
  }

  /** Whether one is known to be there. */
  anyAt({ ip, port }: SocketAddr): boolean {
    for (const name of this.#facts.keys()) {
      const address = this.#members.member(name)?.address;
      if (address?.ip === ip && address.port === port) return true;
    }
    return false;
  }
}

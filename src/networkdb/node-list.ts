import type { NodeName } from "../base/id.ts";
import type { SocketAddr } from "../base/ip.ts";
import type { Instant } from "../base/time.ts";

/** Another node of the cluster, as memberlist reported it and node events changed it. */
export interface Node {
  readonly name: NodeName;
  /** The last one memberlist gave; upstream keeps the first. */
  address: SocketAddr;
  state: "active" | "failed" | "left";
  /** Network clock of its latest node event. */
  time: number;
  /** When a failed or left node is forgotten. */
  reapAt: Instant | undefined;
  /** Of a node that came back under a new name: that name, and until when the old rows stay visible. */
  heir: NodeName | undefined;
  inheritedUntil: Instant | undefined;
}

/** The nodes other than this one, by name. */
export class NodeList {
  readonly #nodes = new Map<NodeName, Node>();

  get size(): number {
    return this.#nodes.size;
  }

  get(name: NodeName): Node | undefined {
    return this.#nodes.get(name);
  }

  isActive(name: NodeName): boolean {
    return this.#nodes.get(name)?.state === "active";
  }

  add(name: NodeName, address: SocketAddr): Node {
    const node: Node = {
      name,
      address,
      state: "active",
      time: 0,
      reapAt: undefined,
      heir: undefined,
      inheritedUntil: undefined,
    };
    this.#nodes.set(name, node);
    return node;
  }

  delete(name: NodeName): void {
    this.#nodes.delete(name);
  }

  [Symbol.iterator](): Iterator<Node> {
    return this.#nodes.values();
  }

  inState(state: Node["state"]): Node[] {
    return [...this.#nodes.values()].filter((node) => node.state === state);
  }

  get activeCount(): number {
    let count = 0;
    for (const node of this.#nodes.values()) if (node.state === "active") count++;
    return count;
  }

  /** The node another name at this address replaces: an active one if there is one, else failed, else left. */
  predecessorAt(address: SocketAddr, successor: NodeName): Node | undefined {
    for (const state of ["active", "failed", "left"] as const) {
      for (const node of this.#nodes.values()) {
        const same = node.address.ip === address.ip && node.address.port === address.port;
        if (same && node.state === state && node.name !== successor) return node;
      }
    }
    return undefined;
  }
}

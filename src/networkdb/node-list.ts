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
  /** What memberlist said last; may be true of a node that left here. */
  aliveInMemberlist: boolean;
  /** It left because another name came up at its address. */
  replaced: boolean;
  /** Its rows are shown although it is not active: it was replaced while active, or is resting. */
  rowsVisible: boolean;
  /** Of a replaced node: who writes its rows anew. */
  heir: NodeName | undefined;
  /** When what an heir has not written is dropped, or the rows of a resting node are suspended. */
  graceUntil: Instant | undefined;
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
      aliveInMemberlist: true,
      replaced: false,
      rowsVisible: false,
      heir: undefined,
      graceUntil: undefined,
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

  /** Nodes of other names at this address. */
  othersAt(address: SocketAddr, name: NodeName): Node[] {
    return [...this.#nodes.values()].filter(
      (node) => node.name !== name && node.address.ip === address.ip && node.address.port === address.port,
    );
  }

  /** The node another name at this address replaces: an active one if there is one, else a failed one. */
  predecessorAt(address: SocketAddr, successor: NodeName): Node | undefined {
    const others = this.othersAt(address, successor);
    return others.find(({ state }) => state === "active") ?? others.find(({ state }) => state === "failed");
  }
}

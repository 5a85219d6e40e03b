/**
 * The userspace VXLAN engine as TypeScript sees it: sockets and threads start with it, networks come and go with
 * their TAP devices, the forwarding table is published whole. Not one frame passes through here, and a blocked event
 * loop does not stop them. How it works: native/src/engine/, native/README.md.
 */
import type { Vni } from "../base/id.ts";
import { type IpAddr, ipToBytes } from "../base/ip.ts";
import { type EngineNetwork, encodeEngineTable } from "../overlay/engine-table.ts";
import type { TapOptions } from "./netns.ts";
import { type EngineCounters, native, type NativeEngine } from "./native.ts";

/** How the engine's devices are opened: virtio headers, and several queues where the kernel has them. */
export const ENGINE_TAP: TapOptions = { vnetHeaderBytes: 12, multiQueue: true };

/** Default of Docker and IANA. */
export const DEFAULT_ENGINE_PORT = 4789;

export interface EngineOptions {
  /** Data-path addresses of this node, 1 … 16; the first of a family is the source of what we send. */
  readonly addresses: readonly IpAddr[];
  /** Where we listen, and where every peer does. Default 4789. */
  readonly port?: number;
  /** Namespace of the underlay; −1, the default, is the one we are in. */
  readonly netnsFd?: number;
  /** UDP source ports per family, 1 … 32, among which inner flows are spread. Default 16. */
  readonly sourcePorts?: number;
  /** Hand superframes to the kernel whole where it takes them (Linux 6.17), else segment them here. Default true. */
  readonly tunnelOffload?: boolean;
  /** Longest time a thread looks for work before it sleeps, in µs; 0 never spins. Default 200. */
  readonly spinMicros?: number;
}

export interface EngineNetworkOptions {
  readonly vni: Vni;
  /** Of the inner interfaces, bytes. */
  readonly mtu: number;
  /** Outer packets too big for the way are lost instead of cut into pieces. Default false. */
  readonly dontFragment?: boolean;
  /** Queues of one TAP device (`Netns.openTap` with ENGINE_TAP), 1 … 64. */
  readonly tapFds: readonly number[];
}

export class Engine {
  readonly #native: NativeEngine;

  /** Opens the sockets and starts the threads. @throws SyscallError, EADDRINUSE when a kernel VXLAN holds the port */
  constructor(options: EngineOptions) {
    this.#native = new native.Engine({
      netnsFd: options.netnsFd ?? -1,
      addresses: options.addresses.map(ipToBytes),
      port: options.port ?? DEFAULT_ENGINE_PORT,
      sourcePorts: options.sourcePorts ?? 16,
      tunnelOffload: options.tunnelOffload ?? true,
      spinMicros: options.spinMicros ?? 200,
    });
  }

  /** The descriptors belong to the engine from here on, unless it throws. @throws SyscallError, EEXIST for a known VNI */
  addNetwork(options: EngineNetworkOptions): void {
    this.#native.addNetwork({ dontFragment: false, ...options });
  }

  /** Closes the network's TAP queues before it returns. Whether there was such a network. */
  removeNetwork(vni: Vni): boolean {
    return this.#native.removeNetwork(vni);
  }

  /** Replaces what the threads know about all networks; frames on the way see the old or the new, never a mixture. */
  publish(networks: Iterable<EngineNetwork>): void {
    this.#native.publishTable(encodeEngineTable(networks));
  }

  /** Whether the kernel may put datagrams that it receives together (UDP_GRO). On at the start. */
  setGrouping(on: boolean): void {
    this.#native.setGrouping(on);
  }

  counters(): EngineCounters {
    return this.#native.counters();
  }

  /** Stops the threads and closes every descriptor; again does nothing. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

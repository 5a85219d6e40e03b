/** The typed face of the addon; the only file that loads it. Mechanism only: see `native/README.md`. */
import { createRequire } from "node:module";

/** A failed syscall, as the addon throws it. */
export interface SyscallError extends Error {
  /** errno's name: `EPERM`. */
  readonly code: string;
  /** Positive. */
  readonly errno: number;
  readonly syscall: string;
  /** What the syscall was for: a path, a device, an address. */
  readonly object: string;
}

export interface NativeNetlinkSocket {
  /** One datagram of aligned messages to the kernel. @throws SyscallError */
  send(bytes: Uint8Array): void;
  /**
   * Fills `buffer` (at least 32 KiB) with queued datagrams, each starting 4-byte aligned; waits up to
   * `timeoutMs` for the first. Returns the bytes written, 0 for none. @throws SyscallError
   */
  receive(buffer: Uint8Array, timeoutMs: number): number;
  /** Joins or leaves a multicast group by number. @throws SyscallError */
  setMembership(group: number, member: boolean): void;
  /** Also hears the notifications of every namespace that has an id in this socket's. @throws SyscallError */
  listenAllNamespaces(): void;
  /** Calls back from the event loop while something can be received. Does not keep the process alive. */
  watch(callback: () => void): void;
  close(): void;
}

/** UDP over IPv4; `kernel/datagram-socket.ts` explains the batches. Addresses are numbers, 0 … 2³² − 1. */
export interface NativeDatagramSocket {
  /**
   * Datagram i goes to `buffer` at `i * slotBytes`, its length (larger than a slot when it was cut), address and port
   * to `peers` at 3 i. Returns how many came, 0 … 32. @throws SyscallError
   */
  receive(buffer: Uint8Array, slotBytes: number, peers: Uint32Array): number;
  /** Datagram i ends before `ends[i]` of `buffer`, where the next one begins; address and port are in `peers` at 2 i. */
  send(buffer: Uint8Array, ends: Uint32Array, peers: Uint32Array, count: number): void;
  /** Calls back from the event loop while something can be received. Does not keep the process alive. */
  watch(callback: () => void): void;
  /** The local one. @throws SyscallError */
  port(): number;
  close(): void;
}

/** Bits of `bindSocket`'s last argument. */
export const BIND_FLAG = { reuseAddress: 1, reusePort: 2, freeBind: 4, v6Only: 8 } as const;

/** Since the start; names and meanings are in native/src/engine/counters.h. */
export type EngineCounters = Readonly<Record<EngineCounterName, number>>;

export type EngineCounterName =
  | "txFrames"
  | "txBytes"
  | "txSuperframes"
  | "txWhole"
  | "txSends"
  | "txAnswered"
  | "txDropBroadcast"
  | "txDropUnknownMac"
  | "txDropUnknownIp"
  | "txDropMalformed"
  | "txDropNoAddress"
  | "txDropTooBig"
  | "txDropSend"
  | "rxFrames"
  | "rxBytes"
  | "rxReceives"
  | "rxWrites"
  | "rxDropHeader"
  | "rxDropTruncated"
  | "rxDropUnknownVni"
  | "rxDropUnknownSource"
  | "rxDropWrongVtep"
  | "rxDropChecksum"
  | "rxDropEcn"
  | "rxDropTap"
  | "wakeups";

/** The userspace engine; `kernel/engine.ts` explains the methods. */
export interface NativeEngine {
  addNetwork(options: {
    readonly vni: number;
    readonly mtu: number;
    readonly dontFragment: boolean;
    readonly tapFds: readonly number[];
  }): void;
  removeNetwork(vni: number): boolean;
  /** @throws TypeError unless the bytes are one table of `overlay/engine-table.ts` */
  publishTable(bytes: Uint8Array): void;
  /** Whether the kernel may put datagrams that it receives together (UDP_GRO). */
  setGrouping(on: boolean): void;
  counters(): EngineCounters;
  close(): void;
}

/** Everywhere a `netnsFd` is asked for, −1 means the namespace we are in. */
export interface NativeAddon {
  /** Takes over the descriptor of a bound socket. @throws SyscallError */
  readonly DatagramSocket: new (fd: number) => NativeDatagramSocket;
  readonly NetlinkSocket: new (
    protocol: number,
    netnsFd: number,
    receiveBufferBytes: number,
  ) => NativeNetlinkSocket;
  /** @throws SyscallError */
  readonly Engine: new (options: {
    readonly netnsFd: number;
    /** 4 or 16 bytes each. */
    readonly addresses: readonly Uint8Array[];
    readonly port: number;
    readonly sourcePorts: number;
    readonly tunnelOffload: boolean;
    readonly spinMicros: number;
  }) => NativeEngine;
  /** Makes a network namespace and pins it by a bind mount on the new file `path`. @throws SyscallError */
  createNetns(path: string): void;
  /** Pins the namespace behind the descriptor by a bind mount on the new file `path`. @throws SyscallError */
  pinNetns(path: string, netnsFd: number): void;
  /** Unmounts and unlinks a pin. @throws SyscallError */
  removeNetns(path: string): void;
  /** Runs `action` with the thread inside the namespace. `action` must be synchronous. @throws SyscallError */
  runInNetns<T>(netnsFd: number, action: () => T): T;
  /** A bound, non-blocking, close-on-exec UDP or TCP socket; the caller owns the descriptor. @throws SyscallError */
  bindSocket(netnsFd: number, stream: boolean, address: string, port: number, flags: number): number;
  /** One queue of a TAP device, made if absent; the caller owns the descriptor. @throws SyscallError */
  openTap(netnsFd: number, name: string, flags: number, vnetHeaderBytes: number, offload: number): number;
  /** `kernel/bpf.ts` explains these. Descriptors are the caller's. @throws SyscallError */
  bpfCreateMap(array: boolean, keyBytes: number, valueBytes: number, maxEntries: number): number;
  bpfUpdate(mapFd: number, keys: Uint8Array, values: Uint8Array, count: number): void;
  bpfDelete(mapFd: number, keys: Uint8Array, count: number): void;
  bpfLoad(instructions: Uint8Array): number;
  bpfAttach(netnsFd: number, programFd: number, ifindex: number, egress: boolean): number;
  bpfDevice(linkFd: number): number;
  bpfTestRun(programFd: number, frame: Uint8Array, room: number): { verdict: number; frame: Uint8Array };
}

export const native = createRequire(import.meta.url)("#native") as NativeAddon;

export function isSyscallError(error: unknown): error is SyscallError {
  return error instanceof Error && "syscall" in error && "code" in error && "errno" in error;
}

/**
 * Network namespaces: pin, open, and act inside for one synchronous call.
 *
 * The calling thread is switched there and back (`native/src/netns.cc`), so an action must not await: what it
 * leaves to the event loop would run in the host's namespace.
 */
import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { errorCode, NetError } from "../base/error.ts";
import type { IpAddr } from "../base/ip.ts";
import { BIND_FLAG, isSyscallError, native } from "./native.ts";

/** Where `ip netns` keeps its names; `netctl attach --netns NAME` means a file here. */
export const IPROUTE_NETNS_DIRECTORY = "/run/netns";

export interface BindOptions {
  /** 0 lets the kernel choose. */
  readonly port: number;
  readonly reuseAddress?: boolean;
  readonly reusePort?: boolean;
  /** Bind to an address that no interface has yet. */
  readonly freeBind?: boolean;
  /** An IPv6 socket that takes no IPv4 traffic. */
  readonly v6Only?: boolean;
}

export interface TapOptions {
  /** `IFF_VNET_HDR`: every frame starts with a virtio-net header of this many bytes (10 or 12). */
  readonly vnetHeaderBytes?: number;
  /** `IFF_MULTI_QUEUE`: further opens of the same name add queues. */
  readonly multiQueue?: boolean;
  /** The device outlives its queues, until it is deleted (TUNSETPERSIST). */
  readonly persist?: boolean;
  /** `TUN_F_*` bits the reader of the queue can take. */
  readonly offload?: number;
}

/** An open network namespace. Holds a descriptor, which keeps the namespace alive: dispose of it. */
export class Netns implements Disposable {
  /** What it was opened by, for messages. */
  readonly path: string;
  /** Equal for two handles on one namespace, as long as one of them is open: `device:inode`. */
  readonly id: string;
  #fd: number;

  private constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
    const { dev, ino } = fstatSync(fd);
    this.id = `${dev}:${ino}`;
  }

  /** @throws NetError `NETNS_MISSING` when nothing is there, else the errno's name. */
  static open(path: string): Netns {
    let fd: number;
    try {
      fd = openSync(path, "r");
    } catch (error) {
      const code = errorCode(error) ?? "EIO";
      throw new NetError(
        code === "ENOENT" || code === "ENOTDIR" ? "NETNS_MISSING" : code,
        `open network namespace ${path}: ${code}`,
        { cause: error },
      );
    }
    // A pin whose mount is gone is an ordinary file; setns would say EINVAL only much later.
    const valid = isNetworkNamespace(fd);
    if (valid) return new Netns(path, fd);
    closeSync(fd);
    throw new NetError("NETNS_MISSING", `open network namespace ${path}: it is not a network namespace`);
  }

  /** The namespace this process lives in: the host's. */
  static current(): Netns {
    return Netns.open("/proc/self/ns/net");
  }

  /** Makes a new namespace and pins it at `path`, with the directories above. @throws NetError EEXIST, EPERM, … */
  static create(path: string): Netns {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    try {
      native.createNetns(path);
    } catch (error) {
      throw kernelError("create network namespace", path, error, "CAP_SYS_ADMIN");
    }
    return Netns.open(path);
  }

  /** Pins it at `path` again, where another hand has taken the pin away. @throws NetError */
  pin(path: string): void {
    // What is left when only the mount went.
    Netns.remove(path);
    try {
      native.pinNetns(path, this.fd);
    } catch (error) {
      throw kernelError("pin network namespace", path, error, "CAP_SYS_ADMIN");
    }
  }

  /** Unpins; the namespace dies with its last process, socket and descriptor. Nothing there is not an error. */
  static remove(path: string): void {
    try {
      native.removeNetns(path);
    } catch (error) {
      if (errorCode(error) === "ENOENT") return;
      throw kernelError("remove network namespace", path, error, "CAP_SYS_ADMIN");
    }
  }

  /** The id of what is mounted at `path` without keeping it open; undefined when nothing is. */
  static idOf(path: string): string | undefined {
    try {
      const { dev, ino } = statSync(path);
      return `${dev}:${ino}`;
    } catch {
      return undefined;
    }
  }

  /** For the addon and for `IFLA_NET_NS_FD`. */
  get fd(): number {
    if (this.#fd < 0) throw new Error(`network namespace ${this.path} is closed`);
    return this.#fd;
  }

  /** Runs `action` inside. It must be synchronous. @throws what it throws; NetError when entering fails */
  run<T>(action: () => T extends PromiseLike<unknown> ? never : T): T {
    try {
      return native.runInNetns<T>(this.fd, action);
    } catch (error) {
      if (isSyscallError(error) && error.syscall === "setns")
        throw kernelError("enter network namespace", this.path, error, "CAP_SYS_ADMIN");
      throw error;
    }
  }

  /** `name` with slashes or dots: `net.ipv4.ip_forward`. Undefined when this kernel has no such sysctl here. */
  readSysctl(name: string): string | undefined {
    try {
      return this.run<string>(() => readFileSync(sysctlPath(name), "utf8")).trim();
    } catch (error) {
      if (errorCode(error) === "ENOENT") return undefined;
      throw kernelError(`read sysctl ${name} in`, this.path, error);
    }
  }

  /** @throws NetError, `ENOENT` when this kernel has no such sysctl here. */
  writeSysctl(name: string, value: string | number): void {
    try {
      this.run<void>(() => writeFileSync(sysctlPath(name), String(value)));
    } catch (error) {
      throw kernelError(`set sysctl ${name} = ${value} in`, this.path, error);
    }
  }

  /** A bound UDP socket inside, for `dgram`'s `bind({ fd })`. The caller owns the descriptor. @throws NetError */
  bindUdp(address: IpAddr, options: BindOptions): number {
    return this.#bind(false, address, options);
  }

  /** A bound TCP socket inside, for `net.Server.listen({ fd })`. The caller owns the descriptor. @throws NetError */
  bindTcp(address: IpAddr, options: BindOptions): number {
    return this.#bind(true, address, options);
  }

  #bind(stream: boolean, address: IpAddr, options: BindOptions): number {
    const flags =
      (options.reuseAddress ? BIND_FLAG.reuseAddress : 0) |
      (options.reusePort ? BIND_FLAG.reusePort : 0) |
      (options.freeBind ? BIND_FLAG.freeBind : 0) |
      (options.v6Only ? BIND_FLAG.v6Only : 0);
    try {
      return native.bindSocket(this.fd, stream, address, options.port, flags);
    } catch (error) {
      const what = `bind ${stream ? "tcp" : "udp"} ${address} port ${options.port} in`;
      throw kernelError(what, this.path, error);
    }
  }

  /** One queue of the TAP device `name` inside, made if absent. The caller owns the descriptor. @throws NetError */
  openTap(name: string, options: TapOptions): number {
    const flags =
      (options.multiQueue ? IFF_MULTI_QUEUE : 0) |
      (options.vnetHeaderBytes ? IFF_VNET_HDR : 0) |
      (options.persist ? IFF_PERSIST : 0);
    try {
      return native.openTap(this.fd, name, flags, options.vnetHeaderBytes ?? 0, options.offload ?? 0);
    } catch (error) {
      throw kernelError(`open TAP device ${name} in`, this.path, error, "CAP_NET_ADMIN");
    }
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

const IFF_MULTI_QUEUE = 0x0100;
const IFF_PERSIST = 0x0800;
const IFF_VNET_HDR = 0x4000;

function sysctlPath(name: string): string {
  return `/proc/sys/${name.includes("/") ? name : name.replaceAll(".", "/")}`;
}

/** Where a namespace is pinned for a moment, while it is made: tries and probes. `name` is its purpose. */
export function scratchPath(directory: string, name: string): string {
  return join(directory, `.${name}-${process.pid}`);
}

/** Unpins those of processes that were killed in that moment. */
export function removeScratchNamespaces(directory: string): void {
  for (const name of readdirSync(directory)) if (name.startsWith(".")) Netns.remove(join(directory, name));
}

/** Entering is the only sure test: an unpinned file opens just as well. */
function isNetworkNamespace(fd: number): boolean {
  try {
    native.runInNetns(fd, () => undefined);
    return true;
  } catch (error) {
    // Not allowed to enter is not the same as not a namespace; the first use will say so.
    return errorCode(error) === "EPERM";
  }
}

/** `what object: CODE (netagent needs CAPABILITY)`; a syscall error of the addon or of node's fs is the cause. */
export function kernelError(what: string, object: string, error: unknown, capability?: string): NetError {
  if (error instanceof NetError) return error;
  const code = errorCode(error) ?? "EIO";
  const denied = code === "EPERM" || code === "EACCES";
  const hint = denied ? ` (netagent needs ${capability ?? "CAP_NET_ADMIN"})` : "";
  return new NetError(code, `${what} ${object}: ${code}${hint}`, { cause: error });
}

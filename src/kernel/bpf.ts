/** BPF maps, programs and the places they are attached to. All of them go with their descriptors, and so with us. */
import { close, closeSync } from "node:fs";
import { native } from "./native.ts";
import { kernelError, type Netns } from "./netns.ts";

const CAPABILITY = "CAP_BPF and CAP_NET_ADMIN, or root";

export class BpfMap implements Disposable {
  readonly fd: number;

  /** Sizes in bytes; keys of an array are numbers of 4. @throws NetError */
  constructor(kind: "hash" | "array", keyBytes: number, valueBytes: number, maxEntries: number) {
    this.fd = attempt("make a BPF map of", `${maxEntries} entries`, () =>
      native.bpfCreateMap(kind === "array", keyBytes, valueBytes, maxEntries),
    );
  }

  /** @throws NetError `E2BIG` when it is full */
  set(entries: readonly (readonly [key: Uint8Array, value: Uint8Array])[]): void {
    const [keys, values] = [join(entries.map(([key]) => key)), join(entries.map(([, value]) => value))];
    attempt("set entries of", "a BPF map", () => native.bpfUpdate(this.fd, keys, values, entries.length));
  }

  /** Not there is not an error. @throws NetError */
  delete(keys: readonly Uint8Array[]): void {
    attempt("delete entries of", "a BPF map", () => native.bpfDelete(this.fd, join(keys), keys.length));
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
  }
}

/** A program for traffic control (TCX). */
export class BpfProgram implements Disposable {
  readonly #name: string;
  readonly #fd: number;

  /** `name` is for messages. @throws NetError `EINVAL` or `EACCES` when the kernel's verifier refuses it */
  constructor(name: string, instructions: Uint8Array) {
    this.#name = name;
    this.#fd = attempt("load BPF program", name, () => native.bpfLoad(instructions));
  }

  /** @throws NetError `EINVAL` before Linux 6.6 */
  attach(netns: Netns, ifindex: number, direction: "ingress" | "egress"): BpfLink {
    const what = `attach BPF program ${this.#name} to interface`;
    return new BpfLink(
      attempt(what, `${ifindex} of ${netns.path}`, () =>
        native.bpfAttach(netns.fd, this.#fd, ifindex, direction === "egress"),
      ),
    );
  }

  /** What it says of a frame, and what it makes of it: for tests. `room` is how much longer that may be. @throws NetError */
  run(frame: Uint8Array, room: number): { readonly verdict: number; readonly frame: Uint8Array } {
    return attempt("run BPF program", this.#name, () => native.bpfTestRun(this.#fd, frame, room));
  }

  /** What it is attached to keeps it. */
  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

export class BpfLink implements Disposable {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** False when the device is gone or another hand has detached the program. @throws NetError */
  get attached(): boolean {
    return attempt("look at", "a BPF link", () => native.bpfDevice(this.#fd)) !== 0;
  }

  /** Detaches, which waits for all processors to have seen it: on another thread. */
  detachLater(done: () => void): void {
    close(this.#fd, done);
  }

  /** Detaches. */
  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

function attempt<T>(what: string, object: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw kernelError(what, object, error, CAPABILITY);
  }
}

function join(parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

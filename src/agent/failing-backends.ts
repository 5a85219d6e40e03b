import { createConnection } from "node:net";
import { ipv4FromNumber } from "../base/ip.ts";
import { FAILING } from "../mesh/host-rules.ts";
import { rowLength } from "../mesh/ruleset.ts";
import type { FailingPort } from "./service-index.ts";

/**
 * The rules note a backend whose SYNs go unanswered or are refused (`FAILING`); we look this often, while there are such
 * rules. A client repeats its SYN after one second, then after two: a verdict must come well before the second
 * repetition. Oftener would cost an idle node more than the rest of it.
 */
const LOOK_MS = 250;
/** A failing backend is tried this often; when it accepts, the rules see its SYN-ACK and take the entry out. */
const TRY_MS = 1_000;
const TRY_TIMEOUT_MS = 900;
/** Tries at a time; with more failing backends each is tried less often. */
const TRIES_MAX = 64;

/** Watches which backends fail in this node's eyes, and finds out when they are well again. */
export class FailingBackends {
  #ports: readonly FailingPort[] = [];
  #text = "";
  #next = 0;
  #look: NodeJS.Timeout | undefined;
  #try: NodeJS.Timeout | undefined;
  readonly #read: () => Uint32Array;
  readonly #onChange: (ports: readonly FailingPort[], added: readonly FailingPort[]) => void;

  /**
   * `read` gives the rows of the kernel's set as they are now. `onChange` hears all failing ports, and of them those
   * that were not failing before.
   */
  constructor(
    read: () => Uint32Array,
    onChange: (ports: readonly FailingPort[], added: readonly FailingPort[]) => void,
  ) {
    this.#read = read;
    this.#onChange = onChange;
  }

  /** Whether there are rules to look at. */
  watch(on: boolean): void {
    if (on) this.#look ??= setInterval(() => this.#lookNow(), LOOK_MS).unref();
    else this.close();
  }

  close(): void {
    clearInterval(this.#look);
    clearInterval(this.#try);
    this.#look = undefined;
    this.#try = undefined;
  }

  #lookNow(): void {
    const rows = this.#read();
    const text = rows.join();
    if (text === this.#text) return;
    const before = new Set(this.#ports.map(nameOf));
    this.#text = text;
    this.#ports = decode(rows);
    if (this.#ports.length > 0) this.#try ??= setInterval(() => this.#tryAll(), TRY_MS).unref();
    else {
      clearInterval(this.#try);
      this.#try = undefined;
    }
    this.#onChange(
      this.#ports,
      this.#ports.filter((port) => !before.has(nameOf(port))),
    );
  }

  #tryAll(): void {
    for (let count = 0; count < Math.min(TRIES_MAX, this.#ports.length); count++)
      tryToConnect(this.#ports[this.#next++ % this.#ports.length]);
  }
}

/** `10.255.0.7 port 80/tcp` */
export function nameOf({ ip, protocol, port }: FailingPort): string {
  return `${ip} port ${port}/${protocol}`;
}

function decode(rows: Uint32Array): FailingPort[] {
  const { total } = rowLength(FAILING);
  const ports: FailingPort[] = [];
  for (let at = 0; at < rows.length; at += total) {
    const [ip = 0, , port = 0] = rows.subarray(at, at + total);
    // Nothing but TCP shows a failure to connect.
    ports.push({ ip: ipv4FromNumber(ip), protocol: "tcp", port });
  }
  return ports;
}

/** Whatever comes of it is seen by the rules. */
function tryToConnect(target: FailingPort | undefined): void {
  if (target === undefined) return;
  const socket = createConnection({ host: target.ip, port: target.port });
  socket.setTimeout(TRY_TIMEOUT_MS, () => socket.destroy());
  socket.once("error", () => socket.destroy());
  socket.once("connect", () => socket.destroy());
  socket.unref();
}

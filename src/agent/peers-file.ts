import { z } from "zod";
import { formatSocketAddr, tryParseIp, type SocketAddr } from "../base/ip.ts";
import { readIfPresent, writeAtomically } from "./atomic-file.ts";
import type { GossipLoop } from "./gossip-loop.ts";
import { Saver } from "./saver.ts";

/** The living members' addresses are written down so long after they changed. */
const REMEMBER_PEERS_MS = 1_000;
/** As many as are tried at the next start. */
const MAX_PEERS = 64;

const entry = z.object({ ip: z.string(), port: z.number().int().min(1).max(65_535) });

/** Where the members of this life were, for the next one. */
export class PeersFile {
  readonly #path: string;
  readonly #loop: GossipLoop;
  #written = "";
  readonly #saver = new Saver(() => void this.#save(), REMEMBER_PEERS_MS);

  constructor(path: string, loop: GossipLoop) {
    this.#path = path;
    this.#loop = loop;
  }

  saveSoon(): void {
    this.#saver.soon();
  }

  close(): void {
    this.#saver.try();
    this.#saver.close();
  }

  /** Writes only what is new. An empty list is not: it would make the next start believe that it is the first node. */
  #save(): void {
    const { node } = this.#loop;
    // Members come in an order that changes with every round of probes.
    const addresses = [...node.swim.members()]
      .filter((member) => member.name !== node.name && member.state === "alive")
      .map((member) => member.address)
      .sort((a, b) => (formatSocketAddr(a) < formatSocketAddr(b) ? -1 : 1))
      .slice(0, MAX_PEERS);
    const text = JSON.stringify(addresses);
    if (addresses.length === 0 || text === this.#written) return;
    writeAtomically(this.#path, text);
    this.#written = text;
  }

  read(): SocketAddr[] {
    return parsePeers(readIfPresent(this.#path) ?? "");
  }
}

/** What can be read of it: a convenience only, as without it the seeds of the command line remain. */
export function parsePeers(text: string): SocketAddr[] {
  let values: unknown;
  try {
    values = JSON.parse(text);
  } catch {
    return [];
  }
  if (!Array.isArray(values)) return [];
  return values.slice(0, MAX_PEERS).flatMap((value: unknown) => {
    const { data } = entry.safeParse(value);
    const ip = data === undefined ? undefined : tryParseIp(data.ip);
    return data === undefined || ip === undefined ? [] : [{ ip, port: data.port }];
  });
}

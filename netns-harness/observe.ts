/** What demo and scenarios look at: members, answers, kernel objects of a host. */

import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { Background } from "./command.ts";
import type { Host } from "./host.ts";
import { program, type Place } from "./place.ts";

/** Answers counted by who gave them: `{ "web1.1": 23, "web1.2": 17 }`; failures under "". */
export type Answers = Readonly<Record<string, number>>;

/**
 * Asks an HTTP port `count` times, each time over a new connection. Requests run a few at a time; one without an
 * answer within `patienceSeconds` is a failure.
 */
export async function askHttp(
  from: Place,
  url: string,
  count: number,
  patienceSeconds = 2,
): Promise<Answers> {
  const ask = `curl -sS --max-time ${patienceSeconds} "${url}" 2>/dev/null || echo`;
  const script = `seq ${count} | xargs -P 4 -I{} sh -c '${ask}'`;
  const { stdout } = await from.exec(["sh", "-c", script]);
  return tally(stdout);
}

/** Asks a UDP port `count` times, each time from a new source port; one without an answer in a second is a failure. */
export async function askUdp(from: Place, address: string, port: number, count: number): Promise<Answers> {
  const { stdout } = await from.exec(program("udp-ask", address, String(port), "hello", String(count)));
  return tally(stdout);
}

/** Requests one after the other, a new connection each, to the given URLs in turn, until stopped. */
export class RequestLoop {
  #stopped = false;
  readonly #done: Promise<RequestCounts>;

  private constructor(from: Place, urls: readonly string[], patienceSeconds: number) {
    this.#done = this.#ask(from, urls, patienceSeconds);
  }

  static start(from: Place, urls: readonly string[], patienceSeconds = 2): RequestLoop {
    return new RequestLoop(from, urls, patienceSeconds);
  }

  stop(): Promise<RequestCounts> {
    this.#stopped = true;
    return this.#done;
  }

  async #ask(from: Place, urls: readonly string[], patienceSeconds: number): Promise<RequestCounts> {
    const start = performance.now();
    const counts = { asked: 0, failed: 0, lastFailureMs: 0 };
    while (!this.#stopped) {
      for (const url of urls) {
        const page = await from.httpGet(url, patienceSeconds);
        counts.asked += 1;
        if (page !== undefined) continue;
        counts.failed += 1;
        counts.lastFailureMs = performance.now() - start;
      }
    }
    return counts;
  }
}

export type RequestCounts = {
  readonly asked: number;
  readonly failed: number;
  /** When the last failure was known, counted from the start of the loop (ms). */
  readonly lastFailureMs: number;
};

/** A ping every tenth of a second for as long as the lab stands. */
export class Pings {
  readonly #ping: Background;

  private constructor(ping: Background) {
    this.#ping = ping;
  }

  static start(from: Place, address: string): Pings {
    return new Pings(from.spawn(["ping", "-n", "-i", "0.1", address]));
  }

  /** Numbers of those without an answer, up to the last one that was answered. */
  lost(): number[] {
    const answered = new Set(
      [...this.#ping.output().matchAll(/icmp_seq=(\d+) ttl=/g)].map((match) => Number(match[1])),
    );
    const last = Math.max(0, ...answered);
    return Array.from({ length: last }, (_, index) => index + 1).filter((number) => !answered.has(number));
  }
}

/** First words of lines, counted. */
export function tally(output: string): Answers {
  const answers: Record<string, number> = {};
  for (const line of output.replace(/\n$/, "").split("\n")) {
    const name = line.split(" ")[0] ?? "";
    answers[name] = (answers[name] ?? 0) + 1;
  }
  return answers;
}

/** The names that answered, sorted, when every request was answered; otherwise undefined. */
export function allAnsweredBy(answers: Answers): string[] | undefined {
  return "" in answers ? undefined : Object.keys(answers).sort();
}

/** A link of a host, in its own namespace or in one its agent pinned. */
export type FoundLink = {
  /** `host`, or the file name of the pinned namespace. */
  readonly where: string;
  /** The namespace, for nsenter. */
  readonly path: string;
  readonly name: string;
  readonly kind: string;
  readonly vni?: number;
};

/** Links made for overlays: everything on the host but `lo` and `eth0`, in its namespace and the agent's pinned ones. */
export async function overlayLinks(host: Host): Promise<FoundLink[]> {
  const found: FoundLink[] = [];
  for (const [where, path] of [["host", host.netnsPath] as const, ...pinnedNamespaces(host)]) {
    const { stdout, code } = await host.exec(["nsenter", `--net=${path}`, "ip", "-details", "-json", "link"]);
    if (code !== 0) continue; // went away meanwhile
    for (const link of JSON.parse(stdout) as IpLink[]) {
      if (link.ifname === "lo" || (where === "host" && link.ifname === "eth0")) continue;
      const kind = link.linkinfo?.info_kind ?? "";
      const vni = link.linkinfo?.info_data?.id;
      found.push({ where, path, name: link.ifname, kind, ...(vni === undefined ? {} : { vni }) });
    }
  }
  return found;
}

/** The device of each network on the host, whichever data plane it belongs to. */
export async function networkDevices(host: Host): Promise<(FoundLink & { readonly vni: number })[]> {
  const links = await overlayLinks(host);
  // The kernel does not know the VNI of a TAP device, only the agent does.
  const networks = links.some((link) => link.kind === "tun")
    ? await host.ctlJson<{ id: string; vni: number }[]>("network", "ls")
    : [];
  return links.flatMap((link) => {
    if (link.kind !== "vxlan" && link.kind !== "tun") return [];
    const vni = link.vni ?? networks.find(({ id }) => link.where === `ov-${id}`)?.vni;
    return vni === undefined ? [] : [{ ...link, vni }];
  });
}

/** VNIs that have a device on the host. */
export async function vxlanVnis(host: Host): Promise<number[]> {
  return (await networkDevices(host)).map(({ vni }) => vni);
}

/** What an agent could leave in its host's namespace: links, rules, pinned namespaces, listening sockets. */
export async function hostObjects(host: Host): Promise<string[]> {
  const links = (await overlayLinks(host)).map((link) => `link ${link.name} in ${link.where}`);
  const rules = (await host.run("nft", "list", "tables")).split("\n").filter(Boolean);
  const sockets = (await host.run("cat", "/proc/net/tcp", "/proc/net/udp"))
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[3] === "0A" || fields[3] === "07")
    .map((fields) => `socket ${fields[1] ?? ""}`);
  const pins = pinnedNamespaces(host).map(([name]) => `namespace ${name}`);
  return [...links, ...rules, ...pins, ...sockets];
}

/** Name and path of the namespaces the agent holds below its run folder. */
function pinnedNamespaces(host: Host): [string, string][] {
  try {
    const folder = join(host.runFolder, "netns");
    return readdirSync(folder)
      .filter((name) => !/\.(json|resolv\.conf)$/.test(name))
      .map((name) => [name, join(folder, name)]);
  } catch {
    return [];
  }
}

type IpLink = {
  readonly ifname: string;
  readonly linkinfo?: { readonly info_kind?: string; readonly info_data?: { readonly id?: number } };
};

/**
 * Lets the mesh's flows through iptables' FORWARD chain where its policy is DROP, as dockerd sets it.
 *
 * A drop in any base chain is final, so no rule in a table of ours can help; what helps is a rule in that chain, and
 * that is how Docker and kube-proxy get along with each other, too. Two rules, marked by their comment, at the head of
 * the chain; nothing of others is changed. Both of iptables' back ends may be in use at once.
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import type { ByteWriter } from "../base/bytes.ts";
import { errorCode, errorText, NetError } from "../base/error.ts";
import { NFT_MESSAGE, writeGetIpv4Chain } from "../wire/nftables/message.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";

const COMMENT = "netagent routing mesh";

interface Backend {
  readonly program: string;
  /** Whether it may have a filter table; asking a back end that has none would make one. */
  readonly inUse: (netns: Netns) => boolean;
}

const BACKENDS: readonly Backend[] = [
  {
    program: "iptables-nft",
    inUse: hasForwardChain,
  },
  {
    program: "iptables-legacy",
    inUse: hasLegacyFilter,
  },
];

/**
 * With `leg` the interface of the ingress network our flows are let through; without it our rules are taken out.
 * Returns whether anything was to be changed; `mayChange` false only looks. @throws NetError `IPTABLES_REFUSED`, `IPTABLES_MISSING`
 */
export async function reconcileForwardPolicy(
  netns: Netns,
  leg: string | undefined,
  mayChange = true,
): Promise<boolean> {
  let changed = false;
  for (const { program, inUse } of BACKENDS) {
    if (!inUse(netns)) continue;
    const listing = await mustRun(netns, program, ["-w", "-S", "FORWARD"]);
    const drops = listing.includes("-P FORWARD DROP");
    const wanted = leg !== undefined && drops ? rulesFor(leg) : [];
    const present = listing.split("\n").filter((line) => line.includes(`"${COMMENT}"`));
    if (present.length === wanted.length) continue;
    changed = true;
    if (!mayChange) continue;
    for (const rule of rulesOf(present)) await mustRun(netns, program, ["-w", "-D", "FORWARD", ...rule]);
    for (const rule of wanted) await mustRun(netns, program, ["-w", "-I", "FORWARD", ...rule]);
  }
  return changed;
}

function rulesFor(leg: string): string[][] {
  const marked = ["-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
  return [
    ["-o", leg, "-m", "conntrack", "--ctstate", "DNAT", ...marked],
    ["-i", leg, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", ...marked],
  ];
}

/** The arguments behind `-A FORWARD` of rules as `-S` prints them. */
function rulesOf(lines: readonly string[]): string[][] {
  return lines.map((line) =>
    [...line.replace(/^-A FORWARD /, "").matchAll(/"([^"]*)"|(\S+)/g)].map(
      ([, quoted, plain]) => quoted ?? plain ?? "",
    ),
  );
}

/** Asked without a process: this is looked at again and again where nobody uses iptables. */
function hasForwardChain(netns: Netns): boolean {
  using socket = new NetlinkSocket("netfilter", netns);
  const request = {
    type: NFT_MESSAGE.getChain,
    encode: (out: ByteWriter) => writeGetIpv4Chain(out, "filter", "FORWARD"),
  };
  try {
    return socket.get("find iptables' FORWARD chain", request, () => true);
  } catch (error) {
    if (errorCode(error) === "ENOENT") return false;
    throw error;
  }
}

/** Whether legacy iptables has a filter table there. */
export function hasLegacyFilter(netns: Netns): boolean {
  return netns.run<boolean>(() => legacyTables().split("\n").includes("filter"));
}

function legacyTables(): string {
  try {
    return readFileSync("/proc/thread-self/net/ip_tables_names", "utf8");
  } catch {
    return ""; // a kernel without it
  }
}

async function mustRun(netns: Netns, program: string, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await run(netns, program, args);
  if (code === 0) return stdout;
  throw new NetError(
    code === undefined ? "IPTABLES_MISSING" : "IPTABLES_REFUSED",
    `let published ports through the FORWARD chain, whose policy may be DROP: ${program} ${args.join(" ")}: ${stderr.trim()}`,
  );
}

/** `code` is undefined when there is no such program. */
function run(
  netns: Netns,
  program: string,
  args: readonly string[],
): Promise<{ readonly code: number | undefined; readonly stdout: string; readonly stderr: string }> {
  // The child inherits the namespace the thread is in when it is made.
  const start = (): ReturnType<typeof startProgram> => startProgram(program, args);
  const child = netns.run(start);
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  return new Promise((resolve, reject) => {
    child.once("error", (error) => {
      if (errorCode(error) === "ENOENT") resolve({ code: undefined, stdout, stderr: "no such program" });
      else reject(new NetError("IPTABLES_REFUSED", `run ${program}: ${errorText(error)}`, { cause: error }));
    });
    child.once("close", (code) => resolve({ code: code ?? 1, stdout, stderr }));
  });
}

function startProgram(program: string, args: readonly string[]) {
  return spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
}

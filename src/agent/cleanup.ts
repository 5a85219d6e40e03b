import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { errorCode, NetError } from "../base/error.ts";
import { removeDnsRedirect } from "../kernel/dns-redirect.ts";
import { reconcileForwardPolicy } from "../kernel/forward-policy.ts";
import { removeEngineTable } from "../kernel/engine-runner.ts";
import { deleteLink, listLinks } from "../kernel/links.ts";
import { NetlinkSocket } from "../kernel/netlink-socket.ts";
import { Netns, removeScratchNamespaces } from "../kernel/netns.ts";
import { NftTableKeeper } from "../kernel/nft.ts";
import { reconcileReturnPath } from "../kernel/return-path.ts";
import { TABLE } from "../mesh/ruleset.ts";
import { VXLAN_TABLE } from "../mesh/vxlan-filter.ts";
import { isOurAlias, networkOfNamespace } from "../overlay/naming.ts";
import { readIfPresent } from "./atomic-file.ts";
import type { Config } from "./config.ts";
import { Endpoints } from "./endpoints.ts";
import { Store } from "./store.ts";

/**
 * Removes what this node's agents have left in the kernel: interfaces in sandboxes and on the host, rules, routes,
 * pinned namespaces. Only what carries our mark. Definitions and addresses in the data directory stay. One line for
 * each thing removed goes to `say`; what cannot be removed is named at the end and does not stop the rest.
 *
 * For hosts netagent is taken off: as long as it is installed, the next start adopts all this.
 * @throws NetError `data-dir-in-use` while an agent runs, `cleanup-incomplete`
 */
export async function cleanUp(
  { dataDir, runDir }: Pick<Config, "dataDir" | "runDir">,
  say: (line: string) => void,
): Promise<void> {
  const lock = lockOf(dataDir);
  const failures: string[] = [];
  const attempt = async (what: string, action: () => void | Promise<void>): Promise<void> => {
    try {
      await action();
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      failures.push(`${what}: ${error.message}`);
    }
  };
  try {
    for (const path of sandboxPaths(dataDir)) await attempt(path, () => cleanSandbox(path, say));
    await attempt("the host", () => cleanNamespace(undefined, "the host", say));
    await attempt("iptables", async () => {
      using host = Netns.current();
      if (await reconcileForwardPolicy(host, undefined)) say("rules in iptables' FORWARD");
    });
    if (existsSync(join(runDir, "netns")))
      await attempt(join(runDir, "netns"), () => removeScratchNamespaces(join(runDir, "netns")));
    for (const path of pinnedNamespaces(runDir)) {
      await attempt(path, () => {
        Netns.remove(path);
        for (const suffix of [".json", ".resolv.conf"]) rmSync(`${path}${suffix}`, { force: true });
        say(`namespace ${path}`);
      });
    }
    rmSync(join(dataDir, "endpoints.json"), { force: true });
    removeEngineTable(runDir);
  } finally {
    lock?.close();
  }
  if (failures.length > 0)
    throw new NetError("cleanup-incomplete", `clean up: could not remove everything: ${failures.join("; ")}`);
}

/** Held while we work, so that no agent starts meanwhile; a damaged state does not keep anybody from cleaning up. */
function lockOf(dataDir: string): Store | undefined {
  if (!existsSync(dataDir)) return undefined;
  try {
    return Store.open(dataDir);
  } catch (error) {
    if (errorCode(error) === "state-corrupt") return undefined;
    throw error;
  }
}

/** Namespaces other than the host's that hold endpoints of ours. */
function sandboxPaths(dataDir: string): Set<string> {
  const paths = new Set<string>();
  let endpoints: Endpoints;
  try {
    endpoints = new Endpoints(readIfPresent(join(dataDir, "endpoints.json")), () => undefined);
  } catch {
    // Damaged: what is on the host and pinned can still be found.
    return paths;
  }
  for (const { sandbox } of endpoints.all()) if (sandbox.type === "netns") paths.add(sandbox.path);
  return paths;
}

function pinnedNamespaces(runDir: string): string[] {
  const folder = join(runDir, "netns");
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => networkOfNamespace(name) !== undefined || /^run-[0-9a-f]{8}$/.test(name))
    .map((name) => join(folder, name));
}

async function cleanSandbox(path: string, say: (line: string) => void): Promise<void> {
  let netns: Netns;
  try {
    netns = Netns.open(path);
  } catch (error) {
    if (errorCode(error) === "NETNS_MISSING") return;
    throw error;
  }
  try {
    await cleanNamespace(netns, path, say);
    await removeDnsRedirect(netns);
    using socket = new NetlinkSocket("route", netns);
    reconcileReturnPath(socket, undefined);
  } finally {
    netns.close();
  }
}

async function cleanNamespace(
  netns: Netns | undefined,
  where: string,
  say: (line: string) => void,
): Promise<void> {
  for (const name of [TABLE, VXLAN_TABLE]) {
    using table = new NftTableKeeper(netns, name);
    if (table.readTable() === undefined) continue;
    await table.reconcile(undefined);
    say(`nftables table ${name} in ${where}`);
  }
  using socket = new NetlinkSocket("route", netns);
  for (const { name, alias } of listLinks(socket)) {
    if (alias === undefined || !isOurAlias(alias)) continue;
    deleteLink(socket, `delete link ${name} in ${where}`, { name });
    say(`interface ${name} in ${where}`);
  }
}

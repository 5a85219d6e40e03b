/** What a lab could leave on the machine itself: taken before and after, compared. */

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";

/** Kind of object → one line per object. */
export type MachineState = ReadonlyMap<string, readonly string[]>;

/**
 * Links, addresses, routes, rules, sockets that wait for somebody, forwarding and mounts of the namespace we run in.
 * Counters and ages are left out, and so are objects of other labs.
 */
export function machineState(): MachineState {
  return new Map([
    ["link", output("ip", "-brief", "link").map((line) => line.replace(/\s+/g, " "))],
    ["address", output("ip", "-brief", "address").map((line) => line.replace(/\s+/g, " "))],
    ["route", output("ip", "route", "show", "table", "all")],
    ["policy rule", output("ip", "rule")],
    ["nftables rule", output("nft", "--stateless", "list", "ruleset").map((line) => line.trim())],
    ["listening socket", [...inetSockets("tcp"), ...inetSockets("udp")]],
    [
      "setting",
      ["net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet"].flatMap((name) => output("sysctl", name)),
    ],
    ["mount", mounts()],
  ]);
}

/** One line per object that came or went; empty when both states are the same. */
export function differences(before: MachineState, after: MachineState): string[] {
  const lines: string[] = [];
  for (const [kind, then] of before) {
    const now = after.get(kind) ?? [];
    lines.push(...now.filter((line) => !then.includes(line)).map((line) => `new ${kind}: ${line}`));
    lines.push(...then.filter((line) => !now.includes(line)).map((line) => `lost ${kind}: ${line}`));
  }
  return lines;
}

function output(...[program = "", ...args]: string[]): string[] {
  const { stdout, status } = spawnSync(program, args, { encoding: "utf8" });
  return status === 0 ? stdout.split("\n").filter(Boolean) : [];
}

/** Local addresses of listening TCP sockets, of unconnected UDP sockets. */
function inetSockets(protocol: "tcp" | "udp"): string[] {
  const wantedState = protocol === "tcp" ? "0A" : "07";
  return [protocol, `${protocol}6`].flatMap((table) =>
    readFileSync(`/proc/net/${table}`, "utf8")
      .split("\n")
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields[3] === wantedState)
      .map((fields) => `${table} ${fields[1] ?? ""}`),
  );
}

/** Mount points, without those of labs and of others' work in the temporary folder. */
function mounts(): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "")
    .filter(
      (path) =>
        path !== "" && path !== "/run/netns" && !path.startsWith(`${tmpdir()}/`) && !/\/na-\d+/.test(path),
    );
}

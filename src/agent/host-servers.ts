import { readFileSync } from "node:fs";
import { nameServers } from "../dns/resolv-conf.ts";

const RESOLV_CONF = "/etc/resolv.conf";

/** The host's name servers as its resolv.conf says now: node's own list is read once per process. */
export function hostServers(): string[] {
  try {
    return nameServers(readFileSync(RESOLV_CONF, "utf8"));
  } catch {
    return []; // a host without the file has no resolver
  }
}

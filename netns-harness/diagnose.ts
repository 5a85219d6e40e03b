/** What an operator asks when something is wrong: doctor, peers, trace and events of a host. */

import type { DoctorView, EventView, PeerView, TraceView } from "../src/agent/control-protocol.ts";
import type { Host } from "./host.ts";
import { waitFor } from "./wait.ts";

export type Check = DoctorView["checks"][number];
export type Hop = TraceView["hops"][number];

/** The doctor's lines that are not ok, with its exit code. */
export async function complaints(
  host: Host,
): Promise<{ readonly code: number | null; readonly checks: Check[] }> {
  const { code, stdout } = await host.netctl("-o", "json", "doctor");
  const { checks } = JSON.parse(stdout) as DoctorView;
  return { code, checks: checks.filter(({ status }) => status !== "ok") };
}

/** A check in one line: `failed data-path node2`. */
export function headOf({ status, name, subject }: Check): string {
  return `${status} ${name} ${subject.replace(/ \(.*/, "")}`;
}

/** Waits until the doctor complains of exactly these: heads as `headOf` writes them. Returns the checks. */
export async function complainsOf(
  host: Host,
  heads: readonly string[],
  withinMs: number,
): Promise<readonly Check[]> {
  const wanted = [...heads].sort().join(", ");
  const { checks } = await waitFor(
    `the doctor of ${host.name} to complain of ${wanted || "nothing"}`,
    () => complaints(host),
    { withinMs, until: (seen) => seen.checks.map(headOf).sort().join(", ") === wanted },
  );
  return checks;
}

/** The way between two, whatever becomes of it. */
export async function trace(host: Host, from: string, to: string): Promise<TraceView> {
  const { stdout, stderr } = await host.netctl("-o", "json", "trace", from, to);
  if (stdout === "") throw new Error(stderr);
  return JSON.parse(stdout) as TraceView;
}

/** Waits until the first broken hop of the way is this one, and returns it. */
export async function breaksAt(
  host: Host,
  from: string,
  to: string,
  hop: { readonly node: string; readonly what: RegExp; readonly detail: RegExp },
  withinMs: number,
): Promise<Hop> {
  const seen = await waitFor(
    `the trace from ${from} to ${to} to break at ${hop.what.source} on ${hop.node}`,
    () => trace(host, from, to),
    {
      withinMs,
      until: ({ hops }) => {
        const broken = hops.find(({ status }) => status === "broken");
        return (
          broken !== undefined &&
          broken.node === hop.node &&
          hop.what.test(broken.what) &&
          hop.detail.test(broken.detail)
        );
      },
    },
  );
  return seen.hops.find(({ status }) => status === "broken") as Hop;
}

/** Waits until every hop of the way is well. */
export async function leadsThrough(host: Host, from: string, to: string, withinMs: number): Promise<void> {
  await waitFor(`the trace from ${from} to ${to} to be well`, () => trace(host, from, to), {
    withinMs,
    until: ({ hops }) => hops.every(({ status }) => status === "ok"),
  });
}

/** What has happened on the host of late, of one type. */
export async function events(host: Host, type: string): Promise<EventView[]> {
  const lines = await host.ctl("-o", "json", "events", "--since", "1h", "--no-follow");
  return lines
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as EventView)
    .filter((event) => event.type === type);
}

/** Another member as the host sees it. */
export async function peerOf(host: Host, name: string): Promise<PeerView | undefined> {
  return (await host.ctlJson<PeerView[]>("peers")).find((peer) => peer.name === name);
}

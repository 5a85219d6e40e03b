/** What one node asks another about a packet's way, and what comes back. */
import { z } from "zod";
import { endpointId, networkId } from "../base/id.ts";
import { parseIp } from "../base/ip.ts";
import { parseMac } from "../base/mac.ts";

const MAX_HOPS = 32;
/** Backends of one service that are told; all of them are counted. */
const MAX_BACKENDS = 256;

const method = z.literal("trace");
const network = z.string().transform(networkId);
const endpoint = z.string().transform(endpointId);
const reference = z.string().min(1).max(255);

/** Asked of the node where a part of the way lies. */
export const traceQuestion = z.discriminatedUnion("part", [
  /** Out of an endpoint there, towards another one. */
  z.object({
    method,
    part: z.literal("leave"),
    network,
    endpoint,
    ip: z.string().transform(parseIp),
    mac: z.string().transform(parseMac),
  }),
  /** Into an endpoint there. */
  z.object({ method, part: z.literal("arrive"), network, endpoint }),
  /** Through the rules of the host, or of an endpoint's sandbox. */
  z.object({ method, part: z.literal("rules"), endpoint: endpoint.optional() }),
  /** Which endpoints there are called so: networks the asking node is not on have no rows with it. */
  z.object({ method, part: z.literal("find"), reference }),
  /** What a name stands for in an endpoint's sandbox. */
  z.object({ method, part: z.literal("name"), endpoint, name: reference }),
  /** The backends of a service as that node sees them: on a network of its own, or behind a published port. */
  z.object({ method, part: z.literal("backends"), service: reference, published: z.boolean() }),
]);
export type TraceQuestion = z.input<typeof traceQuestion>;
export type ParsedTraceQuestion = z.output<typeof traceQuestion>;

const hop = z.object({
  node: z.string(),
  place: z.string(),
  what: z.string(),
  status: z.enum(["ok", "broken", "unknown"]),
  detail: z.string(),
});

/** An endpoint with what its part of the way is asked by. */
const traceEnd = z.object({
  id: z.string(),
  name: z.string(),
  network: z.string(),
  networkId: z.string(),
  ip: z.string(),
  mac: z.string(),
  node: z.string(),
});
export type TraceEnd = z.output<typeof traceEnd>;

const backend = z.object({
  label: z.string(),
  node: z.string(),
  state: z.enum(["ready", "draining"]),
  /** Where its packets arrive; absent when no row there says so. */
  end: traceEnd.optional(),
});
export type TraceBackend = z.output<typeof backend>;

const answers = {
  leave: z.array(hop).max(MAX_HOPS),
  arrive: z.array(hop).max(MAX_HOPS),
  rules: z.array(hop).max(MAX_HOPS),
  find: z.array(traceEnd).max(MAX_HOPS),
  name: z.object({ addresses: z.array(z.string()).max(MAX_BACKENDS), hop }),
  backends: z.object({
    /** The asked node's own leg in the ingress network. */
    entry: traceEnd.optional(),
    backends: z.array(backend).max(MAX_BACKENDS),
  }),
} as const;

export type TracePart = keyof typeof answers;
export type TraceAnswer<P extends TracePart> = z.output<(typeof answers)[P]>;
/** Of any part. */
export type AnyTraceAnswer = { [P in TracePart]: TraceAnswer<P> }[TracePart];

/** @throws ZodError for anything else */
export function parseTraceAnswer<P extends TracePart>(part: P, value: unknown): TraceAnswer<P> {
  return answers[part].parse(value) as TraceAnswer<P>;
}

/** As many as an answer may have. */
export function atMost<T>(kind: "hops" | "backends", items: readonly T[]): T[] {
  return items.slice(0, kind === "hops" ? MAX_HOPS : MAX_BACKENDS);
}

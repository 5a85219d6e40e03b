import { DecodeError } from "../base/error.ts";
import { nodeId, type NodeId } from "../base/id.ts";
import { tryParseIp, type IpAddr } from "../base/ip.ts";
import { decodeSerfTags, encodeSerfTags } from "../wire/memberlist/serf-tags.ts";

/** memberlist carries no more. */
const MAX_META_BYTES = 512;

/** What a node can do beyond Docker's protocol; unknown words of newer versions are kept and ignored. */
export type Capability =
  /** Understands definitions and address ranges (`state/`) and the calls of `peer-call.ts`. */
  | "state"
  /** Its sandboxes route replies back through the entry node, so the client's address may be kept. */
  | "return-path"
  /** Answers probes through the data path. */
  | "path-probe";

/** What a netagent says about itself in its memberlist metadata. */
export interface NodeFacts {
  readonly id: NodeId;
  /** Shown to people. */
  readonly name: string;
  /** Data-path addresses, the preferred one first; at least one. */
  readonly vteps: readonly IpAddr[];
  readonly capabilities: readonly string[];
  readonly version: string;
}

/**
 * Metadata in the form of serf tags, so that `serf members` shows them: Docker never reads metadata, serf shows tags.
 * Keys are short because all of it must fit 512 bytes.
 */
export function encodeMetadata(facts: NodeFacts): Uint8Array {
  const bytes = encodeSerfTags(
    new Map([
      ["role", "netagent"],
      ["id", facts.id],
      ["name", facts.name],
      ["vtep", facts.vteps.join(",")],
      ["can", facts.capabilities.join(",")],
      ["version", facts.version],
    ]),
  );
  if (bytes.length > MAX_META_BYTES) {
    throw new DecodeError(
      "node metadata",
      bytes.length,
      `${bytes.length} bytes do not fit ${MAX_META_BYTES} (shorten --name or give fewer data-path addresses)`,
    );
  }
  return bytes;
}

/** Undefined for members that are no netagent: Docker's metadata is empty, serf agents have other tags. */
export function decodeMetadata(meta: Uint8Array): NodeFacts | undefined {
  let tags: ReadonlyMap<string, string>;
  try {
    tags = decodeSerfTags(meta);
    if (tags.get("role") !== "netagent") return undefined;
    const vteps = (tags.get("vtep") ?? "").split(",").flatMap((text) => tryParseIp(text) ?? []);
    if (vteps.length === 0) return undefined;
    return {
      id: nodeId(tags.get("id") ?? ""),
      name: tags.get("name") ?? "",
      vteps,
      capabilities: (tags.get("can") ?? "").split(",").filter((word) => word !== ""),
      version: tags.get("version") ?? "",
    };
  } catch (error) {
    // Somebody else's application data.
    if (error instanceof DecodeError) return undefined;
    throw error;
  }
}

/** The role `netctl peers` shows for a member. */
export function roleOf(meta: Uint8Array): string {
  if (meta.length === 0) return "docker";
  try {
    return decodeSerfTags(meta).get("role") ?? "serf";
  } catch (error) {
    if (error instanceof DecodeError) return "member";
    throw error;
  }
}

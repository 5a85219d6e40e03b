import { createHash } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { z } from "zod";
import { errorCode, errorText, NetError } from "../base/error.ts";
import type { NodeName } from "../base/id.ts";
import { Keyring } from "../swim/keyring.ts";
import type { Agent } from "./agent.ts";
import { formatGossipKey, parseGossipKey } from "./config.ts";
import type { KeyAnswer } from "./control-protocol.ts";

export type KeyOperation = "list" | "install" | "use" | "remove";

/** What is asked of every netagent; `key` is absent for `list`. */
export const keyQuestion = z.object({
  method: z.literal("keys"),
  operation: z.enum(["list", "install", "use", "remove"]),
  key: z.string().optional(),
});
const keyReply = z.union([
  z.object({ result: z.object({ keys: z.array(z.string()) }) }),
  z.object({ error: z.string() }),
]);

/** The gossip keyring of this node, kept in a 0600 file, and its changes across the cluster. */
export class Keys {
  readonly #agent: Agent;
  readonly #save: (text: string) => void;

  constructor(agent: Agent, save: (text: string) => void) {
    this.#agent = agent;
    this.#save = save;
  }

  /** Does it here. @throws NetError */
  apply(operation: KeyOperation, text: string | undefined): { keys: string[] } {
    const { node } = this.#agent.loop;
    if (operation !== "list") {
      if (node.keys.length === 0) {
        throw new NetError(
          "not-encrypted",
          `keys ${operation}: gossip is not encrypted (start every agent with --gossip-key)`,
        );
      }
      const key = parseGossipKey(text ?? "");
      const keyring = Keyring.of(node.keys)[operation](key);
      this.#save(formatKeyring(keyring.keys));
      this.#agent.loop.step({ type: "set-keys", keys: keyring.keys });
      this.#agent.event("keys", fingerprint(key), operation);
    }
    return { keys: node.keys.map(fingerprint) };
  }

  /** Does it on every node that is alive; one answer each, this node's first. */
  async everywhere(
    operation: KeyOperation,
    text: string | undefined,
    timeoutMs: number,
  ): Promise<KeyAnswer[]> {
    // A key that is none is refused before anybody is asked.
    if (text !== undefined) parseGossipKey(text);
    const { node } = this.#agent.loop;
    const others: NodeName[] = [];
    for (const member of node.swim.members()) {
      const able = node.peer(member.name)?.capabilities.includes("state") === true;
      if (member.name !== this.#agent.self && member.state === "alive" && able)
        others.push(member.name as NodeName);
    }
    const question = { method: "keys", operation, ...(text === undefined ? {} : { key: text }) };
    // Others first: after a `use` here they could still open what we seal, since the key is installed there.
    const answers = await Promise.all(others.map((name) => this.#ask(name, question, timeoutMs)));
    return [this.#here(operation, text), ...answers];
  }

  #here(operation: KeyOperation, text: string | undefined): KeyAnswer {
    const node = this.#agent.config.name;
    try {
      return { node, ok: true, keys: this.apply(operation, text).keys };
    } catch (error) {
      if (!(error instanceof NetError)) throw error;
      return { node, ok: false, keys: [], error: error.message };
    }
  }

  async #ask(name: NodeName, question: unknown, timeoutMs: number): Promise<KeyAnswer> {
    const node = this.#agent.shownName(name);
    try {
      const answer = keyReply.parse(await this.#agent.loop.ask(name, question, timeoutMs));
      return "error" in answer
        ? { node, ok: false, keys: [], error: answer.error }
        : { node, ok: true, keys: answer.result.keys };
    } catch (error) {
      return { node, ok: false, keys: [], error: errorText(error) };
    }
  }
}

/** Eight digits that name a key without giving it away. */
export function fingerprint(key: Uint8Array): string {
  return createHash("sha256").update("netagent gossip key").update(key).digest("hex").slice(0, 8);
}

/** serf's keyring file: a JSON list of base64 keys, the sealing one first. */
export function formatKeyring(keys: readonly Uint8Array[]): string {
  return `${JSON.stringify(keys.map(formatGossipKey), null, 2)}\n`;
}

/** @throws SyntaxError, ZodError, or NetError `bad-key`. */
export function parseKeyring(text: string): Uint8Array[] {
  return z.array(z.string()).parse(JSON.parse(text)).map(parseGossipKey);
}

/**
 * The keys to start with: the file's order wins, since a rotation may have changed it; keys of the command line are added.
 * @throws NetError `config` when others may read the file or it is damaged.
 */
export function loadKeyring(path: string, given: readonly Uint8Array[]): readonly Uint8Array[] {
  let text: string;
  try {
    if ((statSync(path).mode & 0o077) !== 0)
      throw new NetError("config", `keyring ${path}: others may read it (chmod 600 ${path})`);
    text = readFileSync(path, "utf8");
  } catch (error) {
    if (errorCode(error) === "ENOENT") return Keyring.of(given).keys;
    throw error;
  }
  try {
    return Keyring.of([...parseKeyring(text), ...given]).keys;
  } catch (cause) {
    throw new NetError(
      "config",
      `keyring ${path}: not a JSON list of base64 keys (mend or remove the file)`,
      { cause },
    );
  }
}

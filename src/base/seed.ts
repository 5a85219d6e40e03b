import { DecodeError } from "./error.ts";
import { parseHostPort } from "./ip.ts";

/** Where to join. The name is for people and for `--require-node-names`; as in memberlist, nobody compares it. */
export interface Seed {
  readonly name: string | undefined;
  /** An address, or a name to look up. */
  readonly host: string;
  readonly port: number;
}

/**
 * `HOST`, `HOST:PORT` or `[IPv6]:PORT`, each perhaps behind `NODENAME/`, as memberlist's Join takes them.
 * @throws DecodeError
 */
export function parseSeed(text: string, defaultPort: number): Seed {
  const slash = text.indexOf("/");
  if (slash < 0) return { name: undefined, ...parseHostPort(text, defaultPort) };
  if (slash === 0)
    throw new DecodeError("seed", undefined, `'${text.slice(0, 80)}' has no node name before the '/'`);
  return { name: text.slice(0, slash), ...parseHostPort(text.slice(slash + 1), defaultPort) };
}

import { z } from "zod";
import { NetError } from "../base/error.ts";
import { nodeName } from "../base/id.ts";
import { parseIp } from "../base/ip.ts";
import type { NodePort } from "../mesh/claims.ts";
import type { Agent } from "./agent.ts";
import type { MeshRunner } from "./mesh-runner.ts";

/** Who does not answer within this has no say: it reports the conflict itself once it learns of the port. */
const ASK_MS = 2_000;
/** Questions under way at one time. */
const ASK_MAX = 16;
const PORTS_MAX = 256;

/** What one netagent asks the others before a port is published on every node. */
export const portsQuestion = z.object({
  ports: z
    .array(
      z.object({
        protocol: z.enum(["tcp", "udp"]),
        port: z.number().int().min(1).max(65535),
        address: z.string().max(64).transform(parseIp).optional(),
      }),
    )
    .max(PORTS_MAX),
});

const portsReply = z.union([
  z.object({ result: z.object({ held: z.string().max(1024).nullable() }) }),
  z.object({ error: z.string() }),
]);

/** Whether a process of any node would lose a port that is about to be published. */
export class PortCheck {
  readonly #agent: Agent;
  readonly #mesh: MeshRunner;

  constructor(agent: Agent, mesh: MeshRunner) {
    this.#agent = agent;
    this.#mesh = mesh;
  }

  answer(body: unknown): { readonly held: string | null } {
    const ports = portsQuestion.parse(body).ports.map(({ protocol, port, address }) => ({
      protocol,
      port,
      ...(address === undefined ? {} : { address }),
    }));
    return { held: this.#mesh.portHolder(ports) ?? null };
  }

  /** @throws NetError `port-taken` naming the node and the process. */
  async check(ports: readonly NodePort[]): Promise<void> {
    if (ports.length === 0) return;
    const here = this.#mesh.portHolder(ports);
    if (here !== undefined) throw taken(here);
    const { node } = this.#agent.loop;
    const waiting = [...node.swim.members()].filter(
      ({ name, state }) =>
        name !== node.name && state === "alive" && node.peer(name)?.capabilities.includes("state") === true,
    );
    const deadline = performance.now() + ASK_MS;
    let found: NetError | undefined;
    const askOneByOne = async (): Promise<void> => {
      for (let member = waiting.shift(); member !== undefined; member = waiting.shift()) {
        const left = Math.ceil(deadline - performance.now());
        if (left <= 0 || found !== undefined) return;
        try {
          const question = { method: "ports", ports };
          const name = nodeName(member.name);
          const reply = portsReply.parse(await this.#agent.loop.ask(name, question, left));
          if ("result" in reply && reply.result.held !== null)
            found = taken(`on ${this.#agent.shownName(member.name)} ${reply.result.held}`);
        } catch (error) {
          if (!(error instanceof NetError || error instanceof z.ZodError)) throw error;
        }
      }
    };
    await Promise.all(Array.from({ length: ASK_MAX }, askOneByOne));
    if (found !== undefined) throw found;
  }
}

function taken(holder: string): NetError {
  return new NetError("port-taken", `publish: ${holder} (stop it, choose another port, or --force)`);
}

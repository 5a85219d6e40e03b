import { INGRESS_HOST_LINK } from "../overlay/naming.ts";
import { INGRESS_ENDPOINT_NAME } from "../overlay/rows.ts";
import { INGRESS } from "../state/ingress.ts";
import type { NetworkView } from "../state/state.ts";
import type { Agent } from "./agent.ts";
import type { EndpointRecord } from "./endpoints.ts";

/** Who on this node needs an interface in the ingress network, derived from services and endpoints. */
export class IngressLegs {
  readonly #agent: Agent;

  constructor(agent: Agent) {
    this.#agent = agent;
  }

  /**
   * While any service publishes a port in ingress mode every node has a leg in the ingress network, and every backend
   * of such a service a second interface in it.
   */
  async ensure(): Promise<void> {
    const ingress = this.#agent.loop.node.state.network(INGRESS.id);
    if (ingress === undefined) return;
    const publishing = this.#agent.loop.node.state
      .services()
      .filter((service) => service.ports.some((port) => port.mode === "ingress"));
    const leg = this.#agent.endpoints.ingressLeg();
    if (publishing.length > 0 && leg === undefined) {
      await this.#addLeg(ingress, {
        kind: "ingress-leg",
        name: INGRESS_ENDPOINT_NAME,
        ifname: INGRESS_HOST_LINK,
        sandbox: { type: "host" },
        aliases: [],
      });
    }
    const ids = new Set(publishing.map((service) => service.id));
    for (const record of this.#agent.endpoints.all()) {
      const backs = record.kind === "user" && record.service !== undefined && ids.has(record.service);
      if (
        backs &&
        !this.#agent.endpoints.leaving.has(record.id) &&
        this.#agent.endpoints.backendLeg(record.id) === undefined
      ) {
        await this.#addLeg(ingress, {
          kind: "backend-leg",
          parent: record.id,
          name: record.name,
          ifname: this.#freeInterfaceName(record),
          sandbox: record.sandbox,
          aliases: [],
          ...(record.service === undefined ? {} : { service: record.service }),
        });
      }
      const orphan =
        record.kind === "backend-leg" && (record.service === undefined || !ids.has(record.service));
      if (orphan) await this.#agent.drop(record, 5_000);
    }
    if (publishing.length === 0 && leg !== undefined) await this.#agent.drop(leg, 5_000);
  }

  async #addLeg(
    ingress: NetworkView,
    parts: Omit<EndpointRecord, "id" | "network" | "ip" | "prefixLength" | "mac">,
  ): Promise<void> {
    const record = await this.#agent.allocate(ingress, parts);
    const gone = parts.parent !== undefined && this.#agent.endpoints.get(parts.parent) === undefined;
    if (this.#agent.closed || gone) {
      await this.#agent.loop.request({ type: "release", network: ingress.id, address: record.ip });
      return;
    }
    this.#agent.endpoints.put(record);
    this.#agent.publish();
    await this.#agent.reconciler.settled(ingress.id, 5_000);
    this.#agent.endpoints.ready.add(record.id);
  }

  /** `eth1` and so on: the first name no interface of ours in that sandbox has. */
  #freeInterfaceName(record: EndpointRecord): string {
    const { sandbox } = record;
    const path = sandbox.type === "netns" ? sandbox.path : "";
    const taken = new Set(
      this.#agent.endpoints
        .all()
        .filter((one) => one.sandbox.type === "netns" && one.sandbox.path === path)
        .map((one) => one.ifname),
    );
    for (let index = 1; ; index++) if (!taken.has(`eth${index}`)) return `eth${index}`;
  }
}

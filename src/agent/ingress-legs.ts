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
   * Every backend of a service that publishes a port has a second interface, in the ingress network. Every node has a
   * leg in it while any service publishes in ingress mode, and one with a backend of a service that publishes in host
   * mode, too.
   */
  async ensure(): Promise<void> {
    const ingress = this.#agent.loop.node.state.network(INGRESS.id);
    if (ingress === undefined) return;
    const publishing = this.#agent.loop.node.state.services().filter((service) => service.ports.length > 0);
    const ids = new Set(publishing.map((service) => service.id));
    const needsLeg =
      publishing.some((service) => service.ports.some((port) => port.mode === "ingress")) ||
      this.#agent.endpoints
        .all()
        .some(({ kind, service }) => kind === "user" && service !== undefined && ids.has(service));
    const leg = this.#agent.endpoints.ingressLeg();
    if (needsLeg && leg === undefined) {
      await this.#addLeg(ingress, {
        kind: "ingress-leg",
        name: INGRESS_ENDPOINT_NAME,
        ifname: INGRESS_HOST_LINK,
        sandbox: { type: "host" },
        aliases: [],
      });
    }
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
    if (!needsLeg && leg !== undefined) await this.#agent.drop(leg, 5_000);
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
    if (record.kind === "backend-leg") {
      // Connections come as soon as a peer reads the name, and are lost where the way back is not made yet.
      this.#agent.endpoints.wired.add(record.id);
      await this.#agent.rulesMade();
    }
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

import { z } from "zod";
import {
  endpointId,
  networkId,
  serviceId,
  type EndpointId,
  type NetworkId,
  type ServiceId,
} from "../base/id.ts";
import { parseIp, type IpAddr } from "../base/ip.ts";
import { parseMac, type MacAddr } from "../base/mac.ts";
import type { Sandbox } from "../overlay/desired.ts";
import { Saver } from "./saver.ts";

/**
 * An interface of this node in a network. `user`: somebody attached it. `ingress-leg`: this node's own foot in the
 * ingress network, in the host's namespace. `backend-leg`: the second interface of a backend whose service publishes
 * ports, in the same sandbox as its `parent`.
 */
export interface EndpointRecord {
  readonly id: EndpointId;
  readonly kind: "user" | "ingress-leg" | "backend-leg";
  readonly parent?: EndpointId;
  readonly name: string;
  readonly network: NetworkId;
  readonly ip: IpAddr;
  readonly prefixLength: number;
  readonly mac: MacAddr;
  readonly ifname: string;
  readonly sandbox: Sandbox;
  readonly aliases: readonly string[];
  readonly service?: ServiceId;
  readonly healthTcp?: number;
  readonly healthCmd?: string;
}

const schema = z.object({
  id: z.string().transform(endpointId),
  kind: z.enum(["user", "ingress-leg", "backend-leg"]),
  parent: z.string().transform(endpointId).optional(),
  name: z.string(),
  network: z.string().transform(networkId),
  ip: z.string().transform(parseIp),
  prefixLength: z.number().int().min(0).max(128),
  mac: z.string().transform(parseMac),
  ifname: z.string(),
  sandbox: z.union([
    z.object({ type: z.literal("netns"), path: z.string() }),
    z.object({ type: z.literal("host") }),
  ]),
  aliases: z.array(z.string()),
  service: z.string().transform(serviceId).optional(),
  healthTcp: z.number().int().min(1).max(65_535).optional(),
  healthCmd: z.string().optional(),
});

/**
 * The endpoints of this node. They outlive the agent: every change is saved before the kernel learns of it.
 * What is not persisted: whether an endpoint serves (`ready`), is being taken away (`leaving`) or fails its check.
 */
export class Endpoints {
  readonly #records = new Map<EndpointId, EndpointRecord>();
  /** The kernel agrees, so the name may be published. */
  readonly ready = new Set<EndpointId>();
  /** Backend legs whose interface is there, so that the mesh can make its rules; the name waits for those. */
  readonly wired = new Set<EndpointId>();
  readonly leaving = new Set<EndpointId>();
  readonly unhealthy = new Set<EndpointId>();
  readonly saver: Saver;

  /** `text` is what `save` got before the restart. @throws ZodError, SyntaxError or DecodeError when it is damaged. */
  constructor(text: string | undefined, save: (text: string) => void) {
    this.saver = new Saver(() => void save(JSON.stringify(this.all())), 0);
    if (text === undefined) return;
    for (const entry of z.array(schema).parse(JSON.parse(text))) {
      const { parent, service, healthTcp, healthCmd, ...rest } = entry;
      this.#records.set(entry.id, {
        ...rest,
        ...(parent === undefined ? {} : { parent }),
        ...(service === undefined ? {} : { service }),
        ...(healthTcp === undefined ? {} : { healthTcp }),
        ...(healthCmd === undefined ? {} : { healthCmd }),
      });
    }
  }

  get(id: EndpointId): EndpointRecord | undefined {
    return this.#records.get(id);
  }

  all(): EndpointRecord[] {
    return [...this.#records.values()];
  }

  ofNetwork(network: NetworkId): EndpointRecord[] {
    return this.all().filter((record) => record.network === network);
  }

  networks(): Set<NetworkId> {
    return new Set(this.all().map((record) => record.network));
  }

  /** The node's own foot in the ingress network. */
  ingressLeg(): EndpointRecord | undefined {
    return this.all().find((record) => record.kind === "ingress-leg");
  }

  backendLeg(parent: EndpointId): EndpointRecord | undefined {
    return this.all().find((record) => record.kind === "backend-leg" && record.parent === parent);
  }

  put(record: EndpointRecord): void {
    this.add(record);
    this.save();
  }

  /** Known, and not on disk: `save` has to follow before anything is made that outlives this process. */
  add(record: EndpointRecord): void {
    this.#records.set(record.id, record);
  }

  remove(id: EndpointId): void {
    this.ready.delete(id);
    this.wired.delete(id);
    this.leaving.delete(id);
    this.unhealthy.delete(id);
    if (this.#records.delete(id)) this.saver.try();
  }

  /** @throws NetError `save-failed` */
  save(): void {
    this.saver.now();
  }
}

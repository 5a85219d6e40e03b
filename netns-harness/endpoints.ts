/** Endpoints of scenarios: sandboxes with an interface, with or without a server inside. */

import type { EndpointView, PeerView, PlanView, ServiceView } from "../src/agent/control-protocol.ts";
import { started, type Place } from "./place.ts";
import type { Background } from "./command.ts";
import type { Host } from "./host.ts";
import type { Lab } from "./lab.ts";
import { waitFor } from "./wait.ts";

const ACCEPTS_WITHIN_MS = 10_000;

/** A sandbox with one interface. */
export type Attached = {
  readonly place: Place;
  readonly id: string;
  readonly ip: string;
  readonly mac: string;
};

/** Makes a sandbox `HOST-name` and attaches it as endpoint `name`. */
export async function attach(
  lab: Lab,
  host: Host,
  network: string,
  name: string,
  ...flags: string[]
): Promise<Attached> {
  const place = lab.sandbox(host, name);
  return { place, ...(await attachPlace(host, network, name, place, ...flags)) };
}

/** Attaches an existing namespace. */
export async function attachPlace(
  host: Host,
  network: string,
  name: string,
  place: Place,
  ...flags: string[]
): Promise<{ id: string; ip: string; mac: string }> {
  const options = ["--network", network, "--netns", place.netns, "--name", name, ...flags];
  const { id, ip, mac } = await host.ctlJson<EndpointView>("attach", ...options);
  return { id, ip, mac };
}

/** An HTTP backend of a service: a server on port 80 in a sandbox, then the attachment. */
export async function httpBackend(
  lab: Lab,
  host: Host,
  network: string,
  service: string,
  name: string,
): Promise<Attached> {
  const place = lab.sandbox(host, name);
  await place.serveHttp(80, name);
  return { place, ...(await attachPlace(host, network, name, place, "--service", service)) };
}

/** A UDP backend of a service, on port 53. */
export async function udpBackend(
  lab: Lab,
  host: Host,
  network: string,
  service: string,
  name: string,
): Promise<Attached> {
  const place = lab.sandbox(host, name);
  await place.serveUdp(53, name);
  return { place, ...(await attachPlace(host, network, name, place, "--service", service)) };
}

/** Waits until `from` reaches `address`. */
export async function reaches(from: Place, address: string, withinMs = 10_000): Promise<void> {
  await waitFor(`${from.name} to reach ${address}`, () => from.pings(address), { withinMs });
}

/** Waits until the host's agent has nothing left to do in the kernel. */
export async function kernelAgrees(host: Host, withinMs = 15_000): Promise<void> {
  await waitFor(`the plan of ${host.name} to be empty`, () => openPlan(host), {
    withinMs,
    until: (open) => open.length === 0,
    everyMs: 200,
  });
}

/** Networks whose kernel state differs from the tables, with the steps. */
export async function openPlan(host: Host): Promise<PlanView[]> {
  return (await host.ctlJson<PlanView[]>("plan")).filter((plan) => plan.steps.length > 0);
}

/** State of a member in the eyes of a host, by name. */
export async function stateOf(host: Host, name: string): Promise<PeerView["state"] | undefined> {
  return (await host.ctlJson<PeerView[]>("peers")).find((peer) => peer.name === name)?.state;
}

/** Names of a service's backends in rotation, in the eyes of a host, sorted. */
export async function readyBackends(host: Host, service: string): Promise<string[]> {
  const { backends } = await host.ctlJson<ServiceView>("service", "inspect", service);
  return backends
    .filter((backend) => backend.state === "ready")
    .map((backend) => backend.name)
    .sort();
}

/** One long-lived TCP connection between two endpoints, beating every 50 ms. */
export class Connection {
  #client: Background;
  private constructor(client: Background) {
    this.#client = client;
  }

  /** Connects from `near` to an echo server started in `far`, or running there already. */
  static async open(
    near: Place,
    far: Place,
    address: string,
    port = 7,
    { serve = true }: { readonly serve?: boolean } = {},
  ): Promise<Connection> {
    if (serve) await far.serve("echo-server", String(port));
    // A published port refuses on another node until that node has heard of the backend.
    for (const deadline = performance.now() + ACCEPTS_WITHIN_MS; ;) {
      const client = near.spawnProgram("heartbeat", address, String(port));
      try {
        await started(client, "beat 1\n");
        return new Connection(client);
      } catch (error) {
        if (!client.output().includes("ECONNREFUSED") || performance.now() > deadline) throw error;
      }
    }
  }

  /** False once the connection has ended. */
  get alive(): boolean {
    return this.#client.running;
  }

  /** Says nothing until `resume`; the connection stays. */
  pause(): void {
    this.#client.signal("SIGSTOP");
  }

  resume(): void {
    this.#client.signal("SIGCONT");
  }

  /** The last thing that happened: an answer, or how the connection ended. */
  end(): string {
    return this.#client.lines().at(-1) ?? "";
  }

  /** Beats answered so far. */
  get beats(): number {
    return this.#client.lines().filter((line) => line.startsWith("beat ")).length;
  }

  /** Waits until more beats come back over the same connection. */
  async beatsOn(withinMs = 10_000): Promise<void> {
    const before = this.beats;
    await waitFor("more beats over the same connection", () => this.#lastBeats(), {
      withinMs,
      until: () => this.#client.running && this.beats >= before + 5,
    });
  }

  #lastBeats(): string {
    return this.#client.lines().slice(-3).join(" | ");
  }
}

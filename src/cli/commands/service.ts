import type { Command } from "commander";
import type { BackendView, PortView, ServiceView } from "../../agent/control-protocol.ts";
import { collect, contextOf, parseDuration, parseLabels, parsePublish, UsageError } from "../context.ts";
import { renderPairs, renderTable, shortId, type Screen } from "../render.ts";

interface CreateOptions {
  readonly network?: string[];
  readonly publish?: string[];
  readonly endpointMode: string;
  readonly affinity: string;
  readonly label?: string[];
  readonly force?: boolean;
  readonly mode: string;
  readonly drainTimeout?: string;
}

/** service create, ls, inspect, ps, update, rm. */
export function addServiceCommands(program: Command): void {
  const service = program.command("service").description("services: a name, a virtual IP, published ports");
  service
    .command("create")
    .description("create a service; endpoints become its backends with --service NAME")
    .argument("<name>")
    .option("--network <network>", "network it is reachable on by name, repeatable", collect)
    .option("-p, --publish <spec>", "[IP:]PUBLISHED:TARGET[/tcp|udp], on every node, repeatable", collect)
    .option("--mode <mode>", "ingress (every node answers) or host (only nodes with a backend)", "ingress")
    .option("--endpoint-mode <mode>", "vip or dnsrr", "vip")
    .option("--affinity <how>", "none or client-ip: one client stays with one backend", "none")
    .option("--drain-timeout <duration>", "longest wait for established connections when a backend leaves")
    .option("--label <key=value>", "label, repeatable", collect)
    .option("--force", "publish although a process of this node holds the port")
    .addHelpText("after", "\nExample:\n  netctl service create web1 --network dockercoins --publish 8000:80")
    .action(async (name: string, options: CreateOptions, command: Command) => {
      const context = contextOf(command);
      const view = await context.client.call("service.create", {
        name,
        networks: options.network ?? [],
        publish: (options.publish ?? []).map((text) => ({
          ...parsePublish(text),
          mode: choice("--mode", options.mode, ["ingress", "host"] as const),
        })),
        endpointMode: choice("--endpoint-mode", options.endpointMode, ["vip", "dnsrr"] as const),
        affinity: choice("--affinity", options.affinity, ["none", "client-ip"] as const),
        labels: parseLabels(options.label ?? []),
        force: options.force === true,
        ...(options.drainTimeout === undefined
          ? {}
          : { drainTimeoutMs: parseDuration(options.drainTimeout) }),
        timeoutMs: context.timeoutMs,
      });
      context.print(view, (one) => `${one.id}\n`);
    });
  service
    .command("ls")
    .description("list services")
    .addHelpText("after", "\nExample:\n  netctl service ls")
    .action(async (_options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("service.ls", {}), renderServices);
    });
  service
    .command("inspect")
    .description("show a service with its addresses, ports and backends")
    .argument("<service>")
    .addHelpText("after", "\nExample:\n  netctl service inspect web1")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("service.inspect", { service: reference }), renderService);
    });
  service
    .command("ps")
    .description("list a service's backends")
    .argument("<service>")
    .addHelpText("after", "\nExample:\n  netctl service ps web1")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("service.ps", { service: reference }), renderBackends);
    });
  service
    .command("update")
    .description("change published ports, affinity or drain timeout")
    .argument("<service>")
    .option("--publish-add <spec>", "[IP:]PUBLISHED:TARGET[/tcp|udp], repeatable", collect)
    .option("--publish-rm <port>", "PUBLISHED[/tcp|udp], repeatable", collect)
    .option("--affinity <how>", "none or client-ip")
    .option("--drain-timeout <duration>", "longest wait for established connections when a backend leaves")
    .option("--force", "publish although a process of this node holds the port")
    .addHelpText("after", "\nExample:\n  netctl service update web1 --publish-add 8443:443 --publish-rm 8000")
    .action(
      async (
        reference: string,
        options: {
          publishAdd?: string[];
          publishRm?: string[];
          affinity?: string;
          drainTimeout?: string;
          force?: boolean;
        },
        command: Command,
      ) => {
        const context = contextOf(command);
        const view = await context.client.call("service.update", {
          service: reference,
          publishAdd: (options.publishAdd ?? []).map(parsePublish),
          publishRemove: (options.publishRm ?? []).map(parsePublishedPort),
          ...(options.affinity === undefined
            ? {}
            : { affinity: choice("--affinity", options.affinity, ["none", "client-ip"] as const) }),
          ...(options.drainTimeout === undefined
            ? {}
            : { drainTimeoutMs: parseDuration(options.drainTimeout) }),
          force: options.force === true,
          timeoutMs: context.timeoutMs,
        });
        context.print(view, (one) => `${one.id}\n`);
      },
    );
  service
    .command("rm")
    .description("remove a service; its endpoints stay attached")
    .argument("<service>")
    .addHelpText("after", "\nExample:\n  netctl service rm web1")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      const result = await context.client.call("service.rm", {
        service: reference,
        timeoutMs: context.timeoutMs,
      });
      context.print(result, ({ id }) => `${id}\n`);
    });
}

function choice<T extends string>(option: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((one) => one === value);
  if (found === undefined) throw new UsageError(`${option} '${value}' is not ${allowed.join(" or ")}`);
  return found;
}

function parsePublishedPort(text: string): { published: number; protocol: "tcp" | "udp" } {
  const match = /^(\d+)(?:\/(tcp|udp))?$/.exec(text);
  if (match === null) throw new UsageError(`--publish-rm '${text}' is not PUBLISHED[/tcp|udp]`);
  return { published: Number(match[1]), protocol: match[2] === "udp" ? "udp" : "tcp" };
}

function formatPort(port: PortView): string {
  return `${port.address === undefined ? "*" : port.address}:${port.published}->${port.target}/${port.protocol}${port.mode === "host" ? " (host)" : ""}`;
}

function renderServices(services: ServiceView[], screen: Screen): string {
  return renderTable(
    services,
    [
      { title: "ID", value: (service) => shortId(service.id), drop: 1 },
      {
        title: "NAME",
        value: (service) => service.name,
        colour: (service) => (service.conflict ? "red" : undefined),
      },
      { title: "MODE", value: (service) => service.endpointMode },
      { title: "BACKENDS", value: backendCount },
      { title: "PORTS", value: (service) => service.ports.map(formatPort).join(", ") || "-" },
    ],
    screen,
  );
}

function backendCount(service: ServiceView): string {
  const ready = service.backends.filter((backend) => backend.state === "ready").length;
  return ready === service.backends.length ? String(ready) : `${ready} of ${service.backends.length}`;
}

function renderService(service: ServiceView, screen: Screen): string {
  const facts = renderPairs(
    [
      ["Id", service.id],
      ["Name", service.name],
      ["Mode", `${service.endpointMode}, affinity ${service.affinity}`],
      ["Networks", service.networks.map((one) => `${one.network} ${one.vip}`).join(", ") || "-"],
      ["Ports", service.ports.map(formatPort).join(", ") || "-"],
      ...(service.conflict === undefined ? [] : [["Conflict", service.conflict] as const]),
    ],
    screen,
  );
  return service.backends.length === 0 ? facts : `${facts}\n${renderBackends(service.backends, screen)}`;
}

function renderBackends(backends: readonly BackendView[], screen: Screen): string {
  return renderTable(
    backends,
    [
      { title: "ENDPOINT", value: (backend) => shortId(backend.endpoint) },
      { title: "NAME", value: (backend) => backend.name || "-" },
      { title: "NODE", value: (backend) => backend.node },
      { title: "ADDRESS", value: (backend) => backend.ip },
      {
        title: "STATE",
        value: (backend) => backend.state,
        colour: (backend) => (backend.state === "ready" ? "green" : "yellow"),
      },
    ],
    screen,
  );
}

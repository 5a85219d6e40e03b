import type { Command } from "commander";
import type { NetworkDetailView, NetworkView } from "../../agent/control-protocol.ts";
import { collect, contextOf, parseInteger, parseLabels, UsageError } from "../context.ts";
import { renderPairs, renderTable, shortId, type Screen } from "../render.ts";
import { renderEndpoints } from "./endpoint.ts";

interface CreateOptions {
  readonly subnet?: string;
  readonly gateway?: string;
  readonly vni?: string;
  readonly mtu?: string;
  readonly internal?: boolean;
  readonly encrypted?: boolean;
  readonly label?: string[];
  readonly external?: boolean;
  readonly id?: string;
  readonly ipRange?: string;
}

/** network create, ls, inspect, rm. */
export function addNetworkCommands(program: Command): void {
  const network = program.command("network").description("overlay networks, known on every node");
  network
    .command("create")
    .description("create an overlay network; no kernel object appears before an endpoint does")
    .argument("<name>")
    .option("--subnet <cidr>", "IPv4 subnet (default: the next free 10.0.N.0/24)")
    .option("--gateway <ip>", "gateway address (default: the first of the subnet)")
    .option("--vni <n>", "VXLAN network identifier (default: a free one)")
    .option("--mtu <n>", "upper bound of the MTU inside (default: what the underlay carries)")
    .option("--internal", "no way out: unknown names are not asked outside")
    .option("--encrypted", "encrypt between nodes")
    .option("--label <key=value>", "label, repeatable", collect)
    .option(
      "--external",
      "a network somebody else defines, known on this node only; needs --id, --vni, --subnet",
    )
    .option("--id <id>", "its id, with --external")
    .option("--ip-range <cidr>", "where this node takes addresses from, with --external")
    .addHelpText(
      "after",
      "\nExample:\n  netctl network create dockercoins\n  netctl network create blue --subnet 10.7.0.0/16 --label team=blue",
    )
    .action(async (name: string, options: CreateOptions, command: Command) => {
      const context = contextOf(command);
      if (
        options.external === true &&
        (options.id === undefined || options.vni === undefined || options.subnet === undefined)
      ) {
        throw new UsageError(
          "--external needs --id, --vni and --subnet of the network as its owner defines it",
        );
      }
      if (options.external !== true && (options.id !== undefined || options.ipRange !== undefined)) {
        throw new UsageError("--id and --ip-range go with --external");
      }
      const view = await context.client.call("network.create", {
        name,
        ...(options.subnet === undefined ? {} : { subnet: options.subnet }),
        ...(options.gateway === undefined ? {} : { gateway: options.gateway }),
        ...(options.vni === undefined ? {} : { vni: parseInteger(options.vni) }),
        ...(options.mtu === undefined ? {} : { mtu: parseInteger(options.mtu) }),
        internal: options.internal === true,
        encrypted: options.encrypted === true,
        labels: parseLabels(options.label ?? []),
        ...(options.external === true && options.id !== undefined
          ? {
              external: {
                id: options.id,
                ...(options.ipRange === undefined ? {} : { ipRange: options.ipRange }),
              },
            }
          : {}),
        timeoutMs: context.timeoutMs,
      });
      context.print(view, (one) => `${one.id}\n`);
    });
  network
    .command("ls")
    .description("list networks")
    .addHelpText("after", "\nExample:\n  netctl network ls")
    .action(async (_options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("network.ls", {}), renderNetworks);
    });
  network
    .command("inspect")
    .description("show a network, its nodes, endpoints and address use")
    .argument("<network>")
    .addHelpText("after", "\nExample:\n  netctl network inspect dockercoins")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("network.inspect", { network: reference }), renderDetail);
    });
  network
    .command("rm")
    .description("remove a network that has no endpoint and no service")
    .argument("<network>")
    .addHelpText("after", "\nExample:\n  netctl network rm dockercoins")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      const result = await context.client.call("network.rm", {
        network: reference,
        timeoutMs: context.timeoutMs,
      });
      context.print(result, ({ id }) => `${id}\n`);
    });
}

function renderNetworks(networks: NetworkView[], screen: Screen): string {
  return (
    renderTable(
      networks,
      [
        { title: "NETWORK ID", value: (network) => shortId(network.id) },
        {
          title: "NAME",
          value: (network) => network.name,
          colour: (network) => (network.conflict ? "red" : undefined),
        },
        { title: "DRIVER", value: (network) => network.driver },
        { title: "SCOPE", value: (network) => network.scope },
        { title: "SUBNET", value: (network) => network.subnet, drop: 1 },
        { title: "VNI", value: (network) => String(network.vni), drop: 2 },
      ],
      screen,
    ) +
    networks
      .flatMap((network) =>
        network.conflict === undefined ? [] : [`${network.name}: ${network.conflict}\n`],
      )
      .join("")
  );
}

function renderDetail(network: NetworkDetailView, screen: Screen): string {
  const owners = Object.entries(network.addresses.owners).map(([node, count]) => `${node} ${count}`);
  const facts = renderPairs(
    [
      ["Id", network.id],
      ["Name", network.name],
      [
        "Driver",
        `${network.driver}, scope ${network.scope}${network.internal ? ", internal" : ""}${network.encrypted ? ", encrypted" : ""}`,
      ],
      ["Subnet", `${network.subnet}, gateway ${network.gateway}`],
      ["VNI", `${network.vni}, MTU ${network.mtu}`],
      [
        "Addresses",
        `${network.addresses.used} of ${network.addresses.total} used${owners.length > 0 ? `; ranges: ${owners.join(", ")}` : ""}`,
      ],
      ["Nodes", network.nodes.join(", ") || "none"],
      ...Object.entries(network.labels).map(([key, value]) => [`Label ${key}`, value] as const),
      ...(network.conflict === undefined ? [] : [["Conflict", network.conflict] as const]),
    ],
    screen,
  );
  return network.endpoints.length === 0 ? facts : `${facts}\n${renderEndpoints(network.endpoints, screen)}`;
}

import { spawn } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:os";
import type { Command } from "commander";
import type { EndpointView } from "../../agent/control-protocol.ts";
import { NetError } from "../../base/error.ts";
import { collect, contextOf, parseDuration, parseInteger, UsageError, type Context } from "../context.ts";
import { renderPairs, renderTable, shortId, type Screen } from "../render.ts";

interface AttachOptions {
  readonly network: string;
  readonly netns?: string;
  readonly pid?: string;
  readonly name?: string;
  readonly ip?: string;
  readonly alias?: string[];
  readonly service?: string;
  readonly ifname?: string;
  readonly healthTcp?: string;
  readonly healthCmd?: string;
}

interface DetachOptions {
  readonly force?: boolean;
  readonly drainTimeout?: string;
}

/** attach, detach, endpoint, run: interfaces of this node's containers. */
export function addEndpointCommands(program: Command): void {
  withEndpointOptions(
    program.command("attach").description("put an interface of a network into an existing namespace"),
  )
    .option("--netns <path|name>", "the namespace, as a path or a name of 'ip netns'")
    .option("--pid <pid>", "the namespace of this process")
    .addHelpText(
      "after",
      "\nExample:\n  ip netns add box\n  netctl attach --network dockercoins --netns box --name box",
    )
    .action(async (options: AttachOptions, command: Command) => {
      const context = contextOf(command);
      if ((options.netns === undefined) === (options.pid === undefined))
        throw new UsageError("attach needs one of --netns and --pid");
      const sandbox =
        options.pid !== undefined
          ? { pid: parseInteger(options.pid) }
          : { netns: namespacePath(options.netns ?? "") };
      const view = await attach(context, options, sandbox);
      context.print(
        view,
        (endpoint) =>
          `${shortId(endpoint.id)} ${endpoint.ip}/${endpoint.prefixLength} on ${endpoint.network}\n`,
      );
    });

  program
    .command("detach")
    .description("disable an endpoint, drain it, then remove its interface")
    .argument("<endpoint>")
    .option("--force", "cut it off without draining")
    .option(
      "--drain-timeout <duration>",
      "longest wait for its established connections (default: the service's, else 10s)",
    )
    .addHelpText("after", "\nExample:\n  netctl detach box")
    .action(async (reference: string, options: DetachOptions, command: Command) => {
      const context = contextOf(command);
      const result = await context.client.call("detach", {
        endpoint: reference,
        force: options.force === true,
        ...(options.drainTimeout === undefined
          ? {}
          : { drainTimeoutMs: parseDuration(options.drainTimeout) }),
        timeoutMs: context.timeoutMs,
      });
      context.print(result, ({ id }) => `${shortId(id)}\n`);
    });

  const endpoint = program.command("endpoint").description("endpoints, local and remote");
  endpoint
    .command("ls")
    .description("list endpoints of all nodes")
    .option("--network <network>", "only of this network")
    .option("--service <service>", "only backends of this service")
    .addHelpText("after", "\nExample:\n  netctl endpoint ls --network dockercoins")
    .action(async (options: { network?: string; service?: string }, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("endpoint.ls", options), renderEndpoints);
    });
  endpoint
    .command("inspect")
    .description("show one endpoint")
    .argument("<endpoint>")
    .addHelpText("after", "\nExample:\n  netctl endpoint inspect box")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("endpoint.inspect", { endpoint: reference }), (one, screen) =>
        renderPairs(
          [
            ["Id", one.id],
            ["Name", one.name || "-"],
            ["Network", one.network],
            ["Address", `${one.ip}/${one.prefixLength}, ${one.mac}`],
            ["Node", `${one.node}, VTEP ${one.vtep}${one.local ? " (this node)" : ""}`],
            ["Service", one.service || "-"],
            ["State", one.state],
            ...(one.ifname === undefined
              ? []
              : [["Interface", `${one.ifname} in ${one.sandbox ?? "?"}`] as const]),
          ],
          screen,
        ),
      );
    });

  withEndpointOptions(
    program.command("run").description("run a command in a fresh namespace attached to a network"),
  )
    .argument("<command...>")
    // Everything after the command's own name belongs to it.
    .passThroughOptions()
    .addHelpText(
      "after",
      "\nExample:\n  netctl run --network dockercoins --name shell -- bash\n  netctl run --network dockercoins --service web1 -- python3 -m http.server 80",
    )
    .action(async (argv: string[], options: AttachOptions, command: Command) => {
      const context = contextOf(command);
      process.exitCode = await run(context, options, argv);
    });
}

export function renderEndpoints(endpoints: readonly EndpointView[], screen: Screen): string {
  return renderTable(
    endpoints,
    [
      { title: "ENDPOINT", value: (endpoint) => shortId(endpoint.id), drop: 1 },
      { title: "NAME", value: (endpoint) => endpoint.name || "-" },
      { title: "NETWORK", value: (endpoint) => endpoint.network },
      { title: "ADDRESS", value: (endpoint) => endpoint.ip },
      { title: "NODE", value: (endpoint) => endpoint.node },
      { title: "SERVICE", value: (endpoint) => endpoint.service || "-", drop: 2 },
      {
        title: "STATE",
        value: (endpoint) => endpoint.state,
        colour: (endpoint) => (endpoint.state === "draining" ? "yellow" : "green"),
      },
      { title: "VTEP", value: (endpoint) => endpoint.vtep, drop: 4 },
      { title: "MAC", value: (endpoint) => endpoint.mac, drop: 5 },
    ],
    screen,
  );
}

function withEndpointOptions(command: Command): Command {
  return command
    .requiredOption("--network <network>", "the network to attach to")
    .option("--name <name>", "name of the endpoint, answered by DNS")
    .option("--ip <ip>", "this address instead of the next free one")
    .option("--alias <name>", "further name, repeatable", collect)
    .option("--service <service>", "be a backend of this service")
    .option("--ifname <name>", "interface name inside (default eth0)")
    .option("--health-tcp <port>", "in the rotation only while this TCP port accepts")
    .option(
      "--health-cmd <command>",
      "in the rotation only while this shell command succeeds in the namespace",
    );
}

async function attach(
  context: Context,
  options: AttachOptions,
  sandbox: { netns: string } | { pid: number },
): Promise<EndpointView> {
  return context.client.call("attach", {
    network: options.network,
    sandbox,
    ...(options.name === undefined ? {} : { name: options.name }),
    ...(options.ip === undefined ? {} : { ip: options.ip }),
    aliases: options.alias ?? [],
    ...(options.service === undefined ? {} : { service: options.service }),
    ...(options.ifname === undefined ? {} : { ifname: options.ifname }),
    ...(options.healthTcp === undefined ? {} : { healthTcp: parseInteger(options.healthTcp) }),
    ...(options.healthCmd === undefined ? {} : { healthCmd: options.healthCmd }),
    timeoutMs: context.timeoutMs,
  });
}

/** The command's exit code; 128 + signal when a signal ended it, 127 when it could not be started, as shells do. */
async function run(context: Context, options: AttachOptions, argv: readonly string[]): Promise<number> {
  const sandbox = await context.client.call("sandbox.create", { ownerPid: process.pid });
  let child: ReturnType<typeof spawn> | undefined;
  let stopping = false;
  const forward = (signal: NodeJS.Signals): void => {
    const kill = (): void => void child?.kill(signal);
    // A backend that is asked to stop turns new connections away first, as docker stop does; asked twice it ends now.
    if (options.service === undefined || signal === "SIGINT" || stopping) return kill();
    stopping = true;
    const params = { path: sandbox.path, timeoutMs: context.timeoutMs };
    context.client.call("sandbox.drain", params).then(kill, kill);
  };
  // Registered before anything can end us, so that the namespace is always given back. The terminal itself
  // signals the command on Ctrl-C; our own end is the command's end.
  const handlers = (["SIGINT", "SIGTERM", "SIGHUP"] as const).map((signal) => {
    const handler = (): void => {
      if (signal !== "SIGINT" || process.stdin.isTTY !== true) forward(signal);
    };
    process.on(signal, handler);
    return { signal, handler };
  });
  try {
    await attach(context, options, { netns: sandbox.path });
    // A mount namespace of its own gives the command the overlay's DNS without touching the host's file.
    const script = 'test -e "$0" && mount --bind "$0" /etc/resolv.conf; exec "$@"';
    child = spawn(
      "nsenter",
      [
        `--net=${sandbox.path}`,
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        script,
        sandbox.resolvConf,
        ...argv,
      ],
      { stdio: "inherit" },
    );
    const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
    return code ?? 128 + (signal === null ? 0 : constants.signals[signal]);
  } finally {
    for (const { signal, handler } of handlers) process.removeListener(signal, handler);
    try {
      await context.client.call("sandbox.remove", { path: sandbox.path, timeoutMs: context.timeoutMs });
    } catch (error) {
      // The agent removes what a dead process left; only say so when it is something else.
      if (!(error instanceof NetError) || error.code !== "agent-unreachable") throw error;
    }
  }
}

/** A name of `ip netns` or a path. */
function namespacePath(text: string): string {
  return text.includes("/") ? text : `/run/netns/${text}`;
}

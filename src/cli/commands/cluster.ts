import type { Command } from "commander";
import {
  describeFastPath,
  type KeyAnswer,
  type NodeView,
  type PeerView,
} from "../../agent/control-protocol.ts";
import { contextOf, UsageError } from "../context.ts";
import { age, paint, renderPairs, renderTable, shortId, type Colour, type Screen, wrap } from "../render.ts";

const STATE_COLOURS: Readonly<Record<string, Colour>> = {
  alive: "green",
  suspect: "yellow",
  dead: "red",
  left: "dim",
};
const PATH_COLOURS: Readonly<Record<string, Colour>> = {
  ok: "green",
  blocked: "red",
  "one-way": "red",
  unknown: "dim",
};

/** info, peers, join, leave, keys, node: this node and the others. */
export function addClusterCommands(program: Command): void {
  program
    .command("info")
    .description("show this node")
    .addHelpText("after", "\nExample:\n  netctl info")
    .action(async (_options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("info", {}), (info, screen) =>
        renderPairs(
          [
            ["Name", info.name],
            ["Id", info.id],
            ["Member", info.memberName],
            ["Version", info.version],
            ["Gossip", `${info.advertise}${info.encrypted ? " (encrypted)" : ""}`],
            [
              "Data path",
              `${info.vtep} port ${info.dataPathPort}, ${info.dataplane} (${info.dataplaneReason})`,
            ],
            ["Fast path", describeFastPath(info.fastPath)],
            ["Members", String(info.members)],
            ["Health", info.healthScore === 0 ? "good" : `degraded, score ${info.healthScore}`],
            [
              "Event loop",
              `late by ${info.loopDelayMs.p99} ms (p99), ${info.loopDelayMs.longest} ms at most in the last minute`,
            ],
            ...(info.repair === "on" ? [] : [["Repair", "off (netctl repair on)"] as const]),
            ["Data", info.dataDir],
            ["Up", `${age(info.uptimeSeconds * 1000)}, pid ${info.pid}`],
          ],
          screen,
        ),
      );
    });

  program
    .command("peers")
    .description("list every member: state, address, round trip, data path")
    .option("-w, --watch", "show again every second until interrupted")
    .addHelpText(
      "after",
      "\nExample:\n  netctl peers\n  netctl peers -o json | jq '.[] | select(.state != \"alive\")'",
    )
    .action(async (options: { watch?: boolean }, command: Command) => {
      const context = contextOf(command);
      if (options.watch === true && context.json)
        throw new UsageError("--watch and -o json exclude each other");
      for (;;) {
        const peers = await context.client.call("peers", {});
        if (options.watch === true && process.stdout.isTTY) process.stdout.write("\u001b[2J\u001b[H");
        context.print(peers, renderPeers);
        if (options.watch !== true) return;
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    });

  program
    .command("join")
    .description("join the swarm through any of its members")
    .argument("<[node/]host[:port]...>")
    .addHelpText("after", "\nExample:\n  netctl join 192.168.1.104")
    .action(async (addresses: string[], _options, command: Command) => {
      const context = contextOf(command);
      const result = await context.client.call("join", { addresses, timeoutMs: context.timeoutMs });
      context.print(result, ({ joined, failed }) =>
        [
          ...joined.map((address) => `joined through ${address}\n`),
          ...failed.map((one) => `${one.address}: ${one.reason}\n`),
        ].join(""),
      );
    });

  program
    .command("leave")
    .description("leave the swarm gracefully; running endpoints keep their interfaces")
    .addHelpText("after", "\nExample:\n  netctl leave")
    .action(async (_options, command: Command) => {
      const context = contextOf(command);
      await context.client.call("leave", { timeoutMs: context.timeoutMs });
      context.print({}, () => "left the swarm\n");
    });

  addKeyCommands(program);
  addNodeCommands(program);
}

function addKeyCommands(program: Command): void {
  const keys = program.command("keys").description("gossip keys, cluster-wide");
  keys
    .command("generate")
    .description("print a fresh 32-byte key in base64; nothing is installed")
    .addHelpText("after", "\nExample:\n  netctl keys generate > key && chmod 600 key")
    .action(async (_options, command: Command) => {
      // Only here: it is the largest module of node that a netctl could need.
      const { randomBytes } = await import("node:crypto");
      const key = randomBytes(32).toString("base64");
      contextOf(command).print({ key }, () => `${key}\n`);
    });
  keys
    .command("list")
    .description("fingerprints of every node's keys; the first one seals")
    .addHelpText("after", "\nExample:\n  netctl keys list")
    .action(async (_options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("keys.list", { timeoutMs: context.timeoutMs }), renderKeys);
    });
  const change = {
    install: "accept KEY on every node; it does not seal yet",
    use: "seal with KEY on every node; it must be installed everywhere",
    remove: "forget KEY on every node; the sealing key cannot be removed",
  } as const;
  for (const verb of ["install", "use", "remove"] as const) {
    keys
      .command(verb)
      .description(change[verb])
      .argument(
        "<key>",
        "base64 or hex of 16, 24 or 32 bytes; '-' reads it from standard input, out of the process list",
      )
      .addHelpText("after", `\nExample:\n  netctl keys ${verb} - < key`)
      .action(async (key: string, _options, command: Command) => {
        const context = contextOf(command);
        const text = key === "-" ? await readStandardInput() : key;
        const answers = await context.client.call(`keys.${verb}`, {
          key: text,
          timeoutMs: context.timeoutMs,
        });
        context.print(answers, renderKeys);
        if (answers.some((answer) => !answer.ok)) process.exitCode = 1;
      });
  }
}

function addNodeCommands(program: Command): void {
  const node = program.command("node").description("nodes of the swarm and their availability");
  node
    .command("ls")
    .description("list nodes, also those that are down")
    .addHelpText("after", "\nExample:\n  netctl node ls")
    .action(async (_options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("node.ls", {}), renderNodes);
    });
  node
    .command("inspect")
    .description("show one node")
    .argument("<node>")
    .addHelpText("after", "\nExample:\n  netctl node inspect node3")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("node.inspect", { node: reference }), (view, screen) =>
        renderNodes([view], screen),
      );
    });
  node
    .command("update")
    .description("take a node's backends out of the rotation, or put them back")
    .argument("<node>")
    .requiredOption("--availability <state>", "active or drain")
    .addHelpText("after", "\nExample:\n  netctl node update node3 --availability drain")
    .action(async (reference: string, options: { availability: string }, command: Command) => {
      const context = contextOf(command);
      const { availability } = options;
      if (availability !== "active" && availability !== "drain")
        throw new UsageError(`--availability '${availability}' is not active or drain`);
      const view = await context.client.call("node.update", {
        node: reference,
        availability,
        timeoutMs: context.timeoutMs,
      });
      context.print(view, (one) => `${one.name} is ${one.availability}\n`);
    });
  node
    .command("rm")
    .description("forget a dead node and take over its address ranges")
    .argument("<node>")
    .addHelpText("after", "\nExample:\n  netctl node rm node3")
    .action(async (reference: string, _options, command: Command) => {
      const context = contextOf(command);
      const result = await context.client.call("node.rm", { node: reference, timeoutMs: context.timeoutMs });
      context.print(result, ({ id }) => `${id}\n`);
    });
}

function renderPeers(peers: PeerView[], screen: Screen): string {
  return renderPeerTable(peers, screen) + troublesText(peers, screen);
}

/** Below the table, a line for what a word in it stands for; nothing when all is well. */
function troublesText(peers: readonly PeerView[], screen: Screen): string {
  const lines = peers.flatMap(({ name, state, dataPathDetail, faults }) => [
    ...(dataPathDetail === "" || state === "dead" || state === "left" ? [] : [`${name}: ${dataPathDetail}`]),
    ...faults.map((fault) => `${name}: ${fault}`),
  ]);
  return lines.map((line) => paint(wrap(line, 2, screen), "yellow", screen)).join("");
}

function renderPeerTable(peers: PeerView[], screen: Screen): string {
  return renderTable(
    peers,
    [
      { title: "NAME", value: (peer) => (peer.self ? `${peer.name} *` : peer.name) },
      { title: "ADDRESS", value: (peer) => peer.address },
      { title: "STATE", value: (peer) => peer.state, colour: (peer) => STATE_COLOURS[peer.state] },
      { title: "ROLE", value: (peer) => peer.role, drop: 4 },
      { title: "RTT", value: (peer) => (peer.rttMs === null ? "-" : `${peer.rttMs.toFixed(1)}ms`) },
      { title: "DATAPATH", value: pathText, colour: (peer) => PATH_COLOURS[pathText(peer)] ?? "yellow" },
      { title: "MTU", value: (peer) => (peer.mtu === null ? "-" : String(peer.mtu)), drop: 3 },
      { title: "SINCE", value: (peer) => age(peer.sinceMs), drop: 1 },
      { title: "VERSION", value: (peer) => peer.version || "-", drop: 2 },
      { title: "ID", value: (peer) => shortId(peer.id), drop: 5 },
    ],
    screen,
  );
}

/** In one word; the sentence is in the JSON and in `netctl doctor`. */
function pathText(peer: PeerView): string {
  if (peer.dataPath === "blocked" && peer.dataPathDetail.startsWith("one way")) return "one-way";
  if (peer.dataPath === "ok" && peer.dataPathDetail !== "") return "small-mtu";
  return peer.dataPath === "ok" && peer.faults.length > 0 ? "drift" : peer.dataPath;
}

function renderKeys(answers: KeyAnswer[], screen: Screen): string {
  return renderTable(
    answers,
    [
      { title: "NODE", value: (answer) => answer.node },
      {
        title: "OK",
        value: (answer) => (answer.ok ? "yes" : "no"),
        colour: (answer) => (answer.ok ? "green" : "red"),
      },
      {
        title: "KEYS",
        value: (answer) => answer.error ?? (answer.keys.join(" ") || "(none: gossip is not encrypted)"),
      },
    ],
    screen,
  );
}

function renderNodes(nodes: NodeView[], screen: Screen): string {
  return renderTable(
    nodes,
    [
      { title: "ID", value: (node) => (node.self ? `${shortId(node.id)} *` : shortId(node.id)), drop: 1 },
      { title: "NAME", value: (node) => node.name },
      { title: "ADDRESS", value: (node) => node.address || "-" },
      { title: "STATE", value: (node) => node.state, colour: (node) => STATE_COLOURS[node.state] },
      {
        title: "AVAILABILITY",
        value: (node) => node.availability,
        colour: (node) => (node.availability === "drain" ? "yellow" : undefined),
      },
      { title: "ENDPOINTS", value: (node) => String(node.endpoints), drop: 2 },
    ],
    screen,
  );
}

async function readStandardInput(): Promise<string> {
  let text = "";
  for await (const chunk of process.stdin) text += String(chunk);
  return text.trim();
}

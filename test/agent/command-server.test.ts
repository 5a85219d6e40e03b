import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { CommandServer, commandSocketPath } from "../../src/agent/command-server.ts";
import { createLogger } from "../../src/agent/log.ts";
import { listenUnix, type JsonConnection } from "../../src/transport/unix-socket.ts";

const project = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
const FRONT = join(project, "native/build/Release/netctl");
const NETCTL = join(project, "dist/src/cli/main.js");

const ENDPOINT = {
  ...{ id: "c0ffee".padEnd(64, "0"), name: "bøx\n", network: "blue", ip: "10.0.9.2", prefixLength: 24 },
  ...{ mac: "02:42:0a:00:09:02", node: "node1", vtep: "192.0.2.1", service: "", state: "ready", local: true },
};
/** Which of them the agent runs. */
const SAME: readonly (readonly [words: readonly string[], here: boolean])[] = [
  [["attach", "--network", "blue", "--netns", "box"], true],
  [["-o", "json", "attach", "--network", "blue", "--netns", "box", "--name", "bøx"], true],
  [["attach", "--network", "refused", "--netns", "box"], true],
  [["attach", "--network", "blue"], true],
  [["attach", "--netwrok", "blue"], true],
  [["attach", "--help"], true],
  [["service", "create"], true],
  [["endpoint", "ls", "--network", ""], true],
  [["-o", "yaml", "info"], true],
  [["version"], false],
  [["atach"], false],
  [["run", "--network", "refused", "--", "true"], false],
];

test("the native front prints and exits as netctl does, whoever runs the command", async () => {
  await using agent = await Agent.listen();
  for (const [words, here] of SAME) {
    const before = agent.commands.counters.run;
    const quick = await run([FRONT, ...words], agent.socket);
    assert.equal(agent.commands.counters.run > before, here, words.join(" "));
    assert.deepEqual(quick, await run([process.execPath, NETCTL, ...words], agent.socket), words.join(" "));
  }
});

test("without an agent, or with a word about its socket, the front is netctl itself", async () => {
  const folder = mkdtempSync(join(tmpdir(), "netagent-front-"));
  try {
    const socket = join(folder, "nobody.sock");
    const { code, err } = await run([FRONT, "info"], socket);
    assert.equal(code, 3);
    assert.match(err, /^netctl: reach netagent at .*nobody\.sock: no such socket/);
    await using agent = await Agent.listen();
    assert.equal((await run([FRONT, "--socket", socket, "info"], agent.socket)).code, 3);
    assert.deepEqual(agent.commands.counters, { run: 0, declined: 0 });
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("an agent that ends before it answered is said to be gone, and the command is not run again", async () => {
  await using agent = await Agent.listen();
  const silent = run([FRONT, "attach", "--network", "silent", "--netns", "box"], agent.socket);
  await agent.asked;
  await agent.commands.close();
  assert.deepEqual(await silent, {
    code: 3,
    out: "",
    err: "netctl: netagent went away before it answered\n",
  });
  assert.equal(agent.requests, 1);
});

/** A control socket that answers, and the command server beside it. */
class Agent implements AsyncDisposable {
  readonly socket: string;
  readonly commands: CommandServer;
  requests = 0;
  readonly asked: Promise<void>;
  readonly #close: () => Promise<void>;

  private constructor(
    socket: string,
    commands: CommandServer,
    asked: Promise<void>,
    close: () => Promise<void>,
  ) {
    this.socket = socket;
    this.commands = commands;
    this.asked = asked;
    this.#close = close;
  }

  static async listen(): Promise<Agent> {
    const socket = join(mkdtempSync(join(tmpdir(), "netagent-commands-")), "netagent.sock");
    let agent: Agent | undefined;
    let onAsked: () => void = () => undefined;
    const asked = new Promise<void>((resolve) => (onAsked = resolve));
    const silent: JsonConnection[] = [];
    const control = await listenUnix(socket, (connection) => {
      connection.onValue = (value) => {
        if (agent !== undefined) agent.requests++;
        onAsked();
        const { network } = (value as { params: { network?: string } }).params;
        if (network === "silent") return void silent.push(connection);
        const error = { code: "network-unknown", message: "attach to refused: no such network" };
        connection.send(network === "refused" ? { error } : { result: ENDPOINT });
        connection.close();
      };
    });
    const commands = await CommandServer.listen(socket, createLogger("error", "json"));
    agent = new Agent(socket, commands, asked, async () => {
      for (const connection of silent) connection.destroy();
      await new Promise<void>((resolve) => void control.close(() => resolve()));
    });
    return agent;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (existsSync(commandSocketPath(this.socket))) await this.commands.close();
    await this.#close();
    assert.ok(!existsSync(this.socket) && !existsSync(commandSocketPath(this.socket)));
    rmSync(dirname(this.socket), { recursive: true });
  }
}

function run(
  [program = "", ...words]: readonly string[],
  socket: string,
): Promise<{ readonly code: number | null; readonly out: string; readonly err: string }> {
  const child = spawn(program, words, {
    env: { ...process.env, NETAGENT_SOCKET: socket },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let out = "";
  let err = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (err += text));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, out, err }));
  });
}

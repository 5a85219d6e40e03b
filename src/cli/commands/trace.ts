import { spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import type { Writable } from "node:stream";
import type { Command } from "commander";
import { NetError } from "../../base/error.ts";
import type { TraceView } from "../../agent/control-protocol.ts";
import { contextOf, parseInteger, UsageError, type Context } from "../context.ts";
import { paint, renderTable, type Colour, type Screen, wrap } from "../render.ts";

/** A capture to a file ends here unless told otherwise: it must not fill the disk. */
const DEFAULT_LIMIT_MB = 100;
const STATUS_COLOURS: Readonly<Record<string, Colour>> = { ok: "green", broken: "red", unknown: "yellow" };

/** trace and capture: the way of a packet, and the packets themselves. */
export function addTraceCommands(program: Command): void {
  program
    .command("trace")
    .description(
      "the way a packet takes, each hop checked against table and kernel; exit 1 when one is broken",
    )
    .argument("<src>", "an endpoint, or a node that a client outside enters by")
    .argument("<dst[:port]>", "an endpoint, a service, a VIP, a name, or a node with a published port")
    .addHelpText("after", "\nExample:\n  netctl trace web1 redis\n  netctl trace node1 node1:8000")
    .action(async (from: string, target: string, _options, command: Command) => {
      const context = contextOf(command);
      const { name, port } = splitPort(target);
      const trace = await context.client.call("trace", {
        from,
        to: name,
        ...(port === undefined ? {} : { port }),
      });
      context.print(trace, renderTrace);
      if (!trace.ok) process.exitCode = 1;
    });
  program
    .command("capture")
    .description(
      "decapsulated frames of one network as they leave and reach a node; needs root and tcpdump there",
    )
    .argument("<network>")
    .option("-w, --write <file>", "pcap for Wireshark and tcpdump; '-' is standard output")
    .option("--node <node>", "as seen there instead of on this node")
    .option("--count <frames>", "end after so many", parseInteger)
    .option("--filter <expression>", "as tcpdump's: 'tcp port 80'")
    .option("--limit-mb <megabytes>", `what -w writes ends here (default ${DEFAULT_LIMIT_MB})`, parseInteger)
    .addHelpText(
      "after",
      "\nFrames between two endpoints of the same node do not cross the overlay and are\nnot seen.\n\nExample:\n  netctl capture dockercoins --filter 'tcp port 6379'\n  netctl capture dockercoins -w dockercoins.pcap --count 1000\n  netctl capture dockercoins --node node2 --count 20",
    )
    .action(
      async (
        network: string,
        options: { write?: string; node?: string; count?: number; filter?: string; limitMb?: number },
        command: Command,
      ) => {
        const context = contextOf(command);
        if (context.json) throw new UsageError("capture prints frames, not JSON (use -w FILE)");
        const limitBytes = (options.limitMb ?? DEFAULT_LIMIT_MB) * 1024 * 1024;
        if (options.node !== undefined) {
          process.exitCode = await captureOn(context, network, options.node, options, limitBytes);
          return;
        }
        const { netns, link } = await context.client.call("capture.place", { network });
        const tcpdump = ["tcpdump", "-i", link, "-n", "--immediate-mode"];
        if (options.count !== undefined) tcpdump.push("-c", String(options.count));
        tcpdump.push(...(options.write === undefined ? ["-l"] : ["-U", "-w", "-"]), "--");
        if (options.filter !== undefined) tcpdump.push(options.filter);
        process.exitCode = await capture(netns, tcpdump, options.write, limitBytes);
      },
    );
}

/** `NAME`, `NAME:PORT`, `[IPV6]:PORT`; a bare IPv6 address has no port. */
export function splitPort(text: string): { readonly name: string; readonly port: number | undefined } {
  const bracketed = /^\[([^\]]+)\](?::(\d+))?$/.exec(text);
  const plain = /^([^:]+)(?::(\d+))?$/.exec(text);
  const [, name, port] = bracketed ?? plain ?? [undefined, text];
  return { name: name ?? text, port: port === undefined ? undefined : Number(port) };
}

/** From another node: into the file, or shown by a tcpdump of ours. Its exit code. @throws NetError */
async function captureOn(
  context: Context,
  network: string,
  node: string,
  options: { readonly write?: string; readonly filter?: string; readonly count?: number },
  limitBytes: number,
): Promise<number> {
  const { write, filter, count } = options;
  const shown =
    write === undefined
      ? spawn("tcpdump", ["-n", "-l", "-r", "-"], { stdio: ["pipe", "inherit", "ignore"] })
      : undefined;
  const output: Writable =
    shown?.stdin ?? (write === "-" ? process.stdout : createWriteStream(write ?? "", { mode: 0o600 }));
  const enough = new AbortController();
  const stop = (): void => enough.abort();
  const failed = new Promise<never>((_resolve, reject) => {
    shown?.once("error", (cause) =>
      reject(
        new NetError("capture", `run tcpdump: ${cause.message} (install tcpdump, or use -w)`, { cause }),
      ),
    );
    output.once("error", (cause) =>
      reject(new NetError("capture", `write ${write ?? "to tcpdump"}: ${cause.message}`, { cause })),
    );
  });
  process.once("SIGINT", stop);
  process.once("SIGTERM", stop);
  let written = 0;
  const frames = context.client.call(
    "capture.remote",
    { network, node, ...(filter === undefined ? {} : { filter }), ...(count === undefined ? {} : { count }) },
    ({ detail }) => {
      const bytes = Buffer.from(detail, "base64");
      // Whole chunks only, as tcpdump there flushes packet by packet.
      if (write !== undefined && written + bytes.length > limitBytes) return stop();
      written += bytes.length;
      output.write(bytes);
    },
    enough.signal,
  );
  try {
    await Promise.race([frames, failed]);
  } finally {
    if (output !== process.stdout) output.end();
  }
  if (shown !== undefined) await once(shown, "close");
  return 0;
}

/** Runs until interrupted, until tcpdump ends or the file is full; its exit code. */
async function capture(
  netns: string,
  tcpdump: readonly string[],
  file: string | undefined,
  limitBytes: number,
): Promise<number> {
  // Also of standard output, which may lead into a file.
  const toFile = file !== undefined;
  const child = spawn("nsenter", [`--net=${netns}`, "--", ...tcpdump], {
    stdio: ["ignore", toFile ? "pipe" : "inherit", "inherit"],
  });
  // The terminal's Ctrl-C reaches tcpdump, too: it ends in order and says how much it saw.
  const wait = (): void => undefined;
  const stop = (): void => void child.kill("SIGINT");
  process.on("SIGINT", wait);
  process.on("SIGTERM", stop);
  if (toFile && child.stdout !== null) {
    const output: Writable = file === "-" ? process.stdout : createWriteStream(file, { mode: 0o600 });
    let written = 0;
    output.on("error", (error) => {
      process.stderr.write(`netctl: write ${file}: ${error.message}\n`);
      stop();
    });
    child.stdout.on("data", (chunk: Buffer) => {
      // Whole chunks only: tcpdump flushes packet by packet, and a torn last one is what readers expect least.
      if (written + chunk.length > limitBytes) return stop();
      written += chunk.length;
      output.write(chunk);
    });
    child.stdout.on("end", () => {
      if (output !== process.stdout) output.end();
    });
  }
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once("error", (cause) =>
        reject(new NetError("capture", `run nsenter: ${cause.message} (install util-linux)`, { cause })),
      );
      child.once("close", (code) => resolve(code === 0 || code === null ? 0 : 1));
    });
  } finally {
    process.off("SIGINT", wait);
    process.off("SIGTERM", stop);
  }
}

/** In a pipe a line a hop with all that is said of it; on a terminal what is said comes below the table. */
export function renderTrace(trace: TraceView, screen: Screen): string {
  const isWide = screen.columns === Number.POSITIVE_INFINITY;
  const table = renderTable(
    trace.hops,
    [
      { title: "NODE", value: (hop) => hop.node },
      { title: "WHERE", value: (hop) => hop.place, drop: 1 },
      { title: "HOP", value: (hop) => hop.what, shrink: true },
      { title: "STATE", value: (hop) => hop.status, colour: (hop) => STATUS_COLOURS[hop.status] },
      ...(isWide ? [{ title: "", value: (hop: TraceView["hops"][number]) => hop.detail }] : []),
    ],
    screen,
  );
  const broken = trace.hops.find((hop) => hop.status === "broken");
  const notes = trace.hops
    .filter((hop) => !isWide && hop.detail !== "" && hop !== broken)
    .map((hop) => wrap(`${hop.what} on ${hop.node}: ${hop.detail}`, 2, screen));
  if (broken === undefined) return table + notes.join("");
  const first = wrap(`broken: ${broken.what} on ${broken.node}: ${broken.detail}`, 2, screen);
  return `${table}${notes.join("")}${paint("broken", "red", screen)}${first.slice("broken".length)}`;
}

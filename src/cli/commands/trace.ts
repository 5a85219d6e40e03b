import { spawn } from "node:child_process";
import { createWriteStream } from "node:fs";
import type { Command } from "commander";
import { NetError } from "../../base/error.ts";
import type { TraceView } from "../../agent/control-protocol.ts";
import { contextOf, parseInteger, UsageError } from "../context.ts";
import { paint, renderTable, type Colour, type Screen } from "../render.ts";

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
    .argument("<dst[:port]>", "an endpoint, a service, a VIP, or a node with a published port")
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
      "decapsulated frames of one network as they leave and reach this node; needs root and tcpdump",
    )
    .argument("<network>")
    .option("-w, --write <file>", "pcap for Wireshark and tcpdump; '-' is standard output")
    .option("--count <frames>", "end after so many", parseInteger)
    .option("--filter <expression>", "as tcpdump's: 'tcp port 80'")
    .option("--limit-mb <megabytes>", `a file ends here (default ${DEFAULT_LIMIT_MB})`, parseInteger)
    .addHelpText(
      "after",
      "\nFrames between two endpoints of the same node do not cross the overlay and are not seen.\n\nExample:\n  netctl capture dockercoins --filter 'tcp port 6379'\n  netctl capture dockercoins -w dockercoins.pcap --count 1000",
    )
    .action(
      async (
        network: string,
        options: { write?: string; count?: number; filter?: string; limitMb?: number },
        command: Command,
      ) => {
        const context = contextOf(command);
        if (context.json) throw new UsageError("capture prints frames, not JSON (use -w FILE)");
        const { netns, link } = await context.client.call("capture.place", { network });
        const tcpdump = ["tcpdump", "-i", link, "-n", "--immediate-mode"];
        if (options.count !== undefined) tcpdump.push("-c", String(options.count));
        tcpdump.push(...(options.write === undefined ? ["-l"] : ["-U", "-w", "-"]), "--");
        if (options.filter !== undefined) tcpdump.push(options.filter);
        const limitBytes = (options.limitMb ?? DEFAULT_LIMIT_MB) * 1024 * 1024;
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

/** Runs until interrupted, until tcpdump ends or the file is full; its exit code. */
async function capture(
  netns: string,
  tcpdump: readonly string[],
  file: string | undefined,
  limitBytes: number,
): Promise<number> {
  const toFile = file !== undefined && file !== "-";
  const child = spawn("nsenter", [`--net=${netns}`, "--", ...tcpdump], {
    stdio: ["ignore", toFile ? "pipe" : "inherit", "inherit"],
  });
  // The terminal's Ctrl-C reaches tcpdump, too: it ends in order and says how much it saw.
  const wait = (): void => undefined;
  const stop = (): void => void child.kill("SIGINT");
  process.on("SIGINT", wait);
  process.on("SIGTERM", stop);
  if (toFile && child.stdout !== null) {
    const output = createWriteStream(file, { mode: 0o600 });
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
    child.stdout.on("end", () => output.end());
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

function renderTrace(trace: TraceView, screen: Screen): string {
  const table = renderTable(
    trace.hops,
    [
      { title: "NODE", value: (hop) => hop.node },
      { title: "WHERE", value: (hop) => hop.place, drop: 1 },
      { title: "HOP", value: (hop) => hop.what },
      { title: "STATE", value: (hop) => hop.status, colour: (hop) => STATUS_COLOURS[hop.status] },
      { title: "", value: (hop) => hop.detail },
    ],
    screen,
  );
  const broken = trace.hops.find((hop) => hop.status === "broken");
  return broken === undefined
    ? table
    : `${table}${paint("broken", "red", screen)}: ${broken.what} on ${broken.node}: ${broken.detail}\n`;
}

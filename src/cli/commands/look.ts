import type { Command } from "commander";
import type { DoctorView, PlanView, RepairView, ResolveView } from "../../agent/control-protocol.ts";
import { contextOf, parseDuration, UsageError } from "../context.ts";
import { age, paint, renderTable, type Screen, wrap } from "../render.ts";

/** plan, events, doctor, repair, resolve: what the agent knows, wants, did and thinks is wrong. */
export function addLookCommands(program: Command): void {
  program
    .command("plan")
    .description("what the agent would change in the kernel now; nothing when all agree")
    .argument("[network]")
    .addHelpText("after", "\nExample:\n  netctl plan dockercoins")
    .action(async (network: string | undefined, _options, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("plan", network === undefined ? {} : { network }), renderPlan);
    });
  program
    .command("events")
    .description("follow what happens: members, endpoints, services, repairs")
    .option("--since <duration>", "start this far back, as in 10m")
    .option("--no-follow", "end after the events that have happened")
    .addHelpText("after", "\nExample:\n  netctl events --since 10m")
    .action(async (options: { since?: string; follow: boolean }, command: Command) => {
      const context = contextOf(command);
      await context.client.call(
        "events",
        {
          follow: options.follow,
          ...(options.since === undefined ? {} : { sinceMs: parseDuration(options.since) }),
        },
        (event) => {
          process.stdout.write(
            context.json
              ? `${JSON.stringify(event)}\n`
              : `${event.time}  ${event.type}  ${event.subject}  ${event.detail}\n`,
          );
        },
      );
    });
  program
    .command("doctor")
    .description("check this node and every pair it can see; exit code 1 when something is wrong")
    .addHelpText("after", "\nExample:\n  netctl doctor")
    .action(async (_options, command: Command) => {
      const context = contextOf(command);
      const report = await context.client.call("doctor", {});
      context.print(report, renderDoctor);
      if (!report.ok) process.exitCode = 1;
    });
  program
    .command("repair")
    .description("show or switch whether this node's agent mends what other hands change in the kernel")
    .argument("[mode]", "on or off; off: it is told (doctor, peers, trace, events) and left alone")
    .addHelpText(
      "after",
      "\nExample:\n  netctl repair off\n  netctl repair on\n\nOff lasts until it is switched on, or until the agent is restarted.",
    )
    .action(async (mode: string | undefined, _options, command: Command) => {
      const context = contextOf(command);
      if (mode !== undefined && mode !== "on" && mode !== "off")
        throw new UsageError(`repair '${mode}' is not on or off`);
      const { timeoutMs } = context;
      const params = mode === undefined ? { timeoutMs } : ({ repair: mode, timeoutMs } as const);
      context.print(await context.client.call("repair", params), renderRepair);
    });
  program
    .command("resolve")
    .description("what a name means to an endpoint of this node: what it is tried as, and the rows behind it")
    .argument("<name>")
    .requiredOption("--from <endpoint>", "the endpoint of this node that asks")
    .addHelpText("after", "\nExample:\n  netctl resolve web1 --from box")
    .action(async (name: string, { from }: { from: string }, command: Command) => {
      const context = contextOf(command);
      context.print(await context.client.call("resolve", { name, from }), renderResolve);
    });
}

function renderRepair({ repair, standing }: RepairView, screen: Screen): string {
  const lines = standing.map(({ subject, text }) => wrap(`${subject}: ${text}`, 2, screen));
  return `repair is ${repair}\n${lines.join("")}`;
}

/** A line for each row and definition behind each meaning, then what is answered. */
export function renderResolve(view: ResolveView, screen: Screen): string {
  type Line = Readonly<
    Record<"name" | "network" | "by" | "address" | "state" | "node" | "lamport" | "age", string>
  >;
  const none = { by: "-", address: "-", state: "-", node: "-", lamport: "-", age: "-" };
  const lines = view.tried.flatMap(({ name, network, service, rows }): Line[] => {
    const tried = { ...none, name, network };
    const found: Line[] = rows.map((row) => ({
      ...tried,
      ...{ by: row.endpoint, address: row.ip, state: row.state, node: row.node },
      ...{ lamport: row.lamport, age: age(1000 * row.ageSeconds) },
    }));
    if (service !== undefined)
      found.unshift({ ...tried, by: `service ${service.name}`, address: service.vip || "-" });
    return found.length > 0 ? found : [{ ...tried, state: "unknown" }];
  });
  const table = renderTable(
    lines,
    [
      { title: "TRIED AS", value: (line) => line.name },
      { title: "NETWORK", value: (line) => line.network },
      { title: "BY", value: (line) => line.by },
      { title: "ADDRESS", value: (line) => line.address },
      { title: "STATE", value: (line) => line.state },
      { title: "NODE", value: (line) => line.node, drop: 2 },
      { title: "LTIME", value: (line) => line.lamport, drop: 3 },
      { title: "AGE", value: (line) => line.age, drop: 1 },
    ],
    screen,
  );
  const answer =
    view.outcome === "answered"
      ? `${view.addresses.join(", ")}, for ${view.ttlSeconds} s`
      : `no address: ${view.detail}`;
  return `${table}\n${view.name} for ${view.from}: ${answer}\n`;
}

function renderPlan(plans: PlanView[], screen: Screen): string {
  const open = plans.filter((plan) => plan.steps.length > 0);
  if (open.length === 0) return "nothing to do: the kernel agrees\n";
  return open
    .map(
      (plan) =>
        `${paint(plan.network, "yellow", screen)}\n${plan.steps.map((step) => `  ${step}\n`).join("")}`,
    )
    .join("");
}

/** A check is one line; on a terminal it goes on below itself. */
export function renderDoctor(report: DoctorView, screen: Screen): string {
  const colours = { ok: "green", warning: "yellow", failed: "red" } as const;
  return report.checks
    .map((check) => {
      const cure = check.cure === undefined ? "" : `; ${check.cure}`;
      const text = `${check.status.padEnd(7)}  ${check.name}  ${check.subject}  ${check.detail}${cure}`;
      const status = paint(check.status, colours[check.status], screen);
      return status + wrap(text, 9, screen).slice(check.status.length);
    })
    .join("");
}

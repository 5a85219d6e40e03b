import type { Command } from "commander";
import type { DoctorView, PlanView, TableRowView } from "../../agent/control-protocol.ts";
import { contextOf, parseDuration } from "../context.ts";
import { age, paint, renderTable, shortId, type Screen } from "../render.ts";

/** tables, plan, events, doctor: what the agent knows, wants, did and thinks is wrong. */
export function addLookCommands(program: Command): void {
  program
    .command("tables")
    .description("raw rows of the gossiped tables with owner, Lamport time and age")
    .argument("[network]")
    .argument("[table]", "endpoint_table or overlay_peer_table")
    .option("--all", "tombstones and suspended rows too")
    .addHelpText("after", "\nExample:\n  netctl tables dockercoins overlay_peer_table")
    .action(
      async (
        network: string | undefined,
        table: string | undefined,
        options: { all?: boolean },
        command: Command,
      ) => {
        const context = contextOf(command);
        const rows = await context.client.call("tables", {
          ...(network === undefined ? {} : { network }),
          ...(table === undefined ? {} : { table }),
          all: options.all === true,
        });
        context.print(rows, renderRows);
      },
    );
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
}

function renderRows(rows: TableRowView[], screen: Screen): string {
  return renderTable(
    rows,
    [
      { title: "NETWORK", value: (row) => row.network },
      { title: "TABLE", value: (row) => row.table },
      { title: "KEY", value: (row) => shortId(row.key) },
      { title: "OWNER", value: (row) => shortId(row.owner) },
      { title: "LTIME", value: (row) => row.lamport },
      { title: "AGE", value: (row) => age(row.ageSeconds * 1000) },
      {
        title: "STATE",
        value: (row) => row.state,
        drop: 1,
        colour: (row) => (row.state === "live" ? undefined : "dim"),
      },
      { title: "VALUE", value: (row) => Object.values(row.value).filter(String).join(" "), drop: 2 },
    ],
    screen,
  );
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

function renderDoctor(report: DoctorView, screen: Screen): string {
  const colours = { ok: "green", warning: "yellow", failed: "red" } as const;
  return report.checks
    .map((check) => {
      const status = paint(check.status.padEnd(7), colours[check.status], screen);
      return `${status}  ${check.name}  ${check.subject}  ${check.detail}${check.cure === undefined ? "" : `; ${check.cure}`}\n`;
    })
    .join("");
}

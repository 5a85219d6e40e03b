import type { Command } from "commander";
import type { TableRowView } from "../../agent/control-protocol.ts";
import { contextOf } from "../context.ts";
import { age, paint, renderTable, shortId, type Column, type Screen } from "../render.ts";

export function addTablesCommand(program: Command): void {
  program
    .command("tables")
    .description("raw rows of the gossiped tables with owner, Lamport time and age")
    .argument("[network]")
    .argument("[table]", "endpoint_table or overlay_peer_table, or how it begins")
    .option("--all", "tombstones and suspended rows too, with the time until they are forgotten")
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
}

/** One block for each table of each network, under its name. */
export function renderRows(rows: readonly TableRowView[], screen: Screen): string {
  if (rows.length === 0) return "no rows: a node holds those of networks it has an endpoint on\n";
  const blocks = new Map<string, TableRowView[]>();
  for (const row of rows) {
    const title = `${row.network} ${row.table}`;
    const block = blocks.get(title);
    if (block === undefined) blocks.set(title, [row]);
    else block.push(row);
  }
  return [...blocks]
    .map(([title, block]) => `${paint(title, "yellow", screen)}\n${renderBlock(block, screen)}`)
    .join("\n");
}

function renderBlock(rows: readonly TableRowView[], screen: Screen): string {
  const columns: Column<TableRowView>[] = [
    { title: "KEY", value: (row) => shortId(row.key) },
    { title: "OWNER", value: (row) => row.owner },
    { title: "LTIME", value: (row) => row.lamport },
    { title: "AGE", value: (row) => age(row.ageSeconds * 1_000) },
    { title: "VALUE", value: valueText, shrink: true },
  ];
  if (rows.some((row) => row.state !== "live"))
    columns.splice(-1, 0, { title: "STATE", value: stateText, colour: dimUnlessLive });
  return renderTable(rows, columns, screen);
}

function dimUnlessLive(row: TableRowView): "dim" | undefined {
  return row.state === "live" ? undefined : "dim";
}

/** `tombstone, 29m`: what is not live is forgotten in so long. */
function stateText({ state, expiresSeconds }: TableRowView): string {
  return expiresSeconds === null ? state : `${state}, ${age(expiresSeconds * 1_000)}`;
}

function valueText({ value }: TableRowView): string {
  const field = (name: string): string => {
    const found = value[name];
    return typeof found === "string" ? found : "";
  };
  const named = (label: string, name: string): string =>
    field(name) === "" ? "" : `${label} ${field(name)}`;
  const parts =
    "base64" in value
      ? ["not a record:", field("base64")]
      : "mac" in value
        ? [field("ip"), field("mac"), "at", field("vtep")]
        : [
            ...[
              field("name"),
              field("ip"),
              field("disabled"),
              named("service", "service"),
              named("vip", "vip"),
            ],
            ...[named("ports", "ports"), named("aliases", "aliases")],
          ];
  return parts.filter(Boolean).join(" ");
}

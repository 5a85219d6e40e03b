import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { parse } from "smol-toml";
import { commandLine, loadConfig } from "../../src/agent/config.ts";
import { createRegistry, type MetricSources } from "../../src/agent/metrics.ts";
import { buildProgram } from "../../src/cli/program.ts";
import { renderManual, type ManualParts } from "../../src/packaging/man.ts";

const packaging = resolve(dirname(fileURLToPath(import.meta.url)), "../../../src/packaging");
const PARTS: ManualParts = {
  section: 8,
  version: "1.2.3",
  description: ["Does things."],
  exitStatus: [["0", "Done."]],
  environment: [],
  files: [],
  seeAlso: ["other(8)"],
};

test("the configuration example names every key, and each of its lines is accepted without its #", () => {
  const shipped = readFileSync(join(packaging, "netagent.toml"), "utf8");
  assert.deepEqual(Object.keys(parse(shipped)), [], "as shipped it changes nothing");
  const full = shipped.replaceAll(/^#(?! )/gm, "");
  const flags = commandLine("").options.map((option) => option.long?.slice(2));
  assert.deepEqual(
    Object.keys(parse(full)).sort(),
    flags.filter((flag) => flag !== undefined && !["config", "version"].includes(flag)).sort(),
  );
  const folder = mkdtempSync(join(tmpdir(), "netagent-config-"));
  try {
    const path = join(folder, "netagent.toml");
    // Interfaces of the example that this machine need not have.
    writeFileSync(path, full.replaceAll(/"eth\d"/g, '"127.0.0.1"'), { mode: 0o600 });
    assert.equal(loadConfig(["--config", path], "").gossipKeys.length, 1);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("dashboard and alert rules ask for metrics that exist, with labels they have", () => {
  const registry = createRegistry({ agent: { loop: {} } } as unknown as MetricSources);
  const known = new Map(
    registry
      .getMetricsAsArray()
      .map((metric) => [
        metric.name,
        "labelNames" in metric && Array.isArray(metric.labelNames) ? metric.labelNames.map(String) : [],
      ]),
  );
  const dashboard: unknown = JSON.parse(readFileSync(join(packaging, "grafana-dashboard.json"), "utf8"));
  const alerts = readFileSync(join(packaging, "prometheus-alerts.yml"), "utf8");
  const asked = [...expressionsOf(dashboard), ...alerts.matchAll(/^ +expr: (.*)$/gm)].map((found) =>
    typeof found === "string" ? found : (found[1] ?? ""),
  );
  assert.ok(asked.length > 30);
  const scraped = new Set(["instance", "job"]);
  for (const expression of asked) {
    for (const [, name = "", matchers = ""] of expression.matchAll(/(netagent_\w+)(?:\{([^}]*)\})?/g)) {
      const labels = known.get(name);
      assert.ok(labels, `${name} in ${expression}`);
      for (const [, label = ""] of matchers.matchAll(/(\w+)=~?"/g))
        assert.ok(labels.includes(label) || scraped.has(label), `label ${label} of ${name}`);
    }
  }
  const rules = alerts.split("- alert: ").slice(1);
  assert.ok(rules.length >= 10);
  for (const rule of rules)
    assert.match(
      rule,
      /expr: .+\n +for: \d+m\n +labels:\n +severity: \w+\n +annotations:\n +summary: ".+"\n +cure: ".+"/,
    );
});

/** Every `expr` in it, however deep. */
function expressionsOf(value: unknown): string[] {
  if (typeof value !== "object" || value === null) return [];
  const own = "expr" in value && typeof value.expr === "string" ? [value.expr] : [];
  return [...own, ...Object.values(value).flatMap(expressionsOf)];
}

test("the manual describes every command with its example, and no line of text is taken for a macro", async () => {
  const program = await buildProgram([]);
  const page = renderManual(program, PARTS);
  const leaves = program.commands.flatMap((command) =>
    command.commands.length === 0
      ? [command.name()]
      : command.commands.map((child) => `${command.name()} ${child.name()}`),
  );
  assert.ok(leaves.length > 30);
  for (const leaf of leaves) {
    const from = page.indexOf(`.SS "${leaf} `);
    assert.notEqual(from, -1, leaf);
    const part = page.slice(from, page.indexOf("\n.S", from + 1));
    assert.match(part, /\nExample:\n\.PP\n\.nf\n\.RS\n(.*\n)*netctl/, leaf);
  }
  const known = /^\.(TH|SH|SS|TP|PP|nf|fi|RS|RE|B)\b/;
  for (const line of page.split("\n")) assert.ok(!/^[.']/.test(line) || known.test(line), line);
});

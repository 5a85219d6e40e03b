import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

/** Which folder of `src/` may import which; ARCHITECTURE.md explains the direction. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  base: [],
  wire: ["base"],
  swim: ["base", "wire"],
  networkdb: ["base", "wire"],
  state: ["base", "wire"],
  cluster: ["base", "wire", "swim", "networkdb", "state"],
  overlay: ["base", "wire", "state", "networkdb"],
  mesh: ["base", "state", "networkdb"],
  dns: ["base", "wire", "networkdb"],
  transport: ["base"],
  kernel: ["base", "wire", "transport", "overlay", "mesh"],
  agent: [
    ...[
      "base",
      "wire",
      "swim",
      "networkdb",
      "state",
      "cluster",
      "overlay",
      "mesh",
      "dns",
      "transport",
      "kernel",
    ],
  ],
  cli: ["base"],
  packaging: ["agent", "cli"],
};
/** Single files that may be imported in spite of the table. */
const EXCEPTIONS: Readonly<Record<string, readonly string[]>> = {
  agent: ["cli/program.ts"],
  cli: ["transport/unix-socket.ts", "agent/control-protocol.ts", "agent/version.ts"],
};
/** The pure core: no socket, file, timer, clock or randomness of its own. */
const PURE = ["base", "wire", "swim", "networkdb", "state", "cluster", "overlay", "mesh", "dns"];
const IMPURE =
  /\bDate\.now|\bnew Date\b|Math\.random|\bsetTimeout|\bsetInterval|\bawait\b|performance\.now|from "node:(?!crypto")[a-z_/]+"|process\.(env|hrtime)/;

const project = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const source = join(project, "src");

test("every import points down the table", () => {
  const wrong: string[] = [];
  for (const file of sourceFiles()) {
    const area = areaOf(file);
    const allowed = ALLOWED[area];
    if (allowed === undefined) {
      wrong.push(`${relative(project, file)}: '${area}' is not in the table`);
      continue;
    }
    for (const match of readFileSync(file, "utf8").matchAll(/(?:from|import)\s*\(?"(\.[^"]+)"/g)) {
      const target = resolve(dirname(file), match[1] ?? "");
      const name = relative(source, target);
      const targetArea = areaOf(target);
      if (targetArea === area || allowed.includes(targetArea) || EXCEPTIONS[area]?.includes(name)) continue;
      wrong.push(`${relative(project, file)} imports ${name}`);
    }
  }
  assert.deepEqual(wrong, []);
});

test("the core has no clock, no randomness and no I/O", () => {
  const wrong: string[] = [];
  for (const file of sourceFiles().filter((name) => PURE.includes(areaOf(name)))) {
    readFileSync(file, "utf8")
      .split("\n")
      .forEach((line, index) => {
        const code = line.replace(/\/\/.*$/, "");
        if (!/^\s*\*|^\s*\/\*/.test(line) && IMPURE.test(code))
          wrong.push(`${relative(project, file)}:${index + 1}: ${line.trim()}`);
      });
  }
  assert.deepEqual(wrong, []);
});

test("no default exports, no barrels, no switched-off types", () => {
  const wrong: string[] = [];
  for (const file of sourceFiles()) {
    const text = readFileSync(file, "utf8");
    if (/^export default /m.test(text)) wrong.push(`${relative(project, file)}: default export`);
    if (/@ts-(ignore|nocheck|expect-error)|\bas any\b|: any\b/.test(text))
      wrong.push(`${relative(project, file)}: any`);
    if (/^export \* from/m.test(text)) wrong.push(`${relative(project, file)}: barrel`);
  }
  assert.deepEqual(wrong, []);
});

function areaOf(file: string): string {
  return relative(source, file).split("/")[0] ?? "";
}

function sourceFiles(): string[] {
  return readdirSync(source, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => join(source, name));
}

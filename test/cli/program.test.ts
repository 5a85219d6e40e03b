import assert from "node:assert/strict";
import { test } from "node:test";
import { buildProgram } from "../../src/cli/program.ts";

test("each command is there when it is asked for, with the same subcommands and options as among all", async () => {
  const all = await buildProgram(["--help"]);
  assert.ok(all.commands.length > 15);
  for (const expected of all.commands) {
    const program = await buildProgram(["-o", "json", "--socket", "peers", expected.name(), "--help"]);
    const found = program.commands.find((command) => command.name() === expected.name());
    assert.ok(found, expected.name());
    assert.equal(found.helpInformation(), expected.helpInformation());
    assert.deepEqual(
      found.commands.map((child) => child.helpInformation()),
      expected.commands.map((child) => child.helpInformation()),
    );
  }
});

test("what may be about any command knows all commands", async () => {
  const all = (await buildProgram([])).commands.length;
  for (const argv of [["--help"], ["help", "attach"], ["completion", "bash"], ["atach"], ["-o", "json"]])
    assert.equal((await buildProgram(argv)).commands.length, all, argv.join(" "));
  assert.ok((await buildProgram(["attach"])).commands.length < all);
});

test("every command that does something shows an example in its help, within 80 columns", async () => {
  const visit = (command: Awaited<ReturnType<typeof buildProgram>>, path: string): void => {
    for (const child of command.commands) visit(child, `${path} ${child.name()}`);
    if (command.commands.length > 0) return;
    let text = "";
    command.configureOutput({ writeOut: (part) => (text += part) });
    command.outputHelp();
    assert.match(text, /\nExample:\n[^]*  netctl \w/, path);
    for (const line of text.split("\n")) assert.ok(line.length <= 80, `${path}: ${line}`);
  };
  visit(await buildProgram([]), "netctl");
});

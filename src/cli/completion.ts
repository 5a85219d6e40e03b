import type { Command } from "commander";
import { UsageError } from "./context.ts";

const SHELLS = ["bash", "zsh", "fish"] as const;

export function addCompletionCommand(program: Command): void {
  program
    .command("completion")
    .description("print a completion script")
    .argument("<shell>", SHELLS.join(", "))
    .addHelpText("after", "\nExample:\n  netctl completion bash > /etc/bash_completion.d/netctl")
    .action((shell: string) => {
      process.stdout.write(completionScript(shell, program));
    });
}

/** A script that completes commands, subcommands and options. @throws UsageError for another shell. */
export function completionScript(shell: string, program: Command): string {
  switch (shell) {
    case "bash":
      return bashScript(program);
    case "zsh":
      return `#compdef netctl\nautoload -U +X bashcompinit && bashcompinit\n${bashScript(program)}`;
    case "fish":
      return fishScript(program);
    default:
      throw new UsageError(`completion knows ${SHELLS.join(", ")}, not '${shell}'`);
  }
}

/** Every command path with the words that may follow it. */
function wordsByPath(program: Command): [path: string, words: string[]][] {
  const found: [string, string[]][] = [];
  const visit = (command: Command, path: string): void => {
    const options = command.options.flatMap((option) => (option.long ? [option.long] : []));
    found.push([path, [...command.commands.map((child) => child.name()), ...options, "--help"]]);
    for (const child of command.commands) visit(child, `${path} ${child.name()}`.trim());
  };
  visit(program, "");
  return found;
}

function bashScript(program: Command): string {
  const cases = wordsByPath(program).map(([path, words]) => `    "${path}") words="${words.join(" ")}" ;;`);
  return `_netctl() {
  local path="" word words=""
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in -*) ;; *) case "$path" in *" "*) ;; *) path="\${path:+$path }$word" ;; esac ;; esac
  done
  case "$path" in
${cases.join("\n")}
    *) case "\${path%% *}" in
${wordsByPath(program)
  .filter(([path]) => path !== "" && !path.includes(" "))
  .map(([path, words]) => `      "${path}") words="${words.join(" ")}" ;;`)
  .join("\n")}
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -F _netctl netctl
`;
}

function fishScript(program: Command): string {
  const lines = ["complete -c netctl -f"];
  for (const command of program.commands) {
    lines.push(
      `complete -c netctl -n __fish_use_subcommand -a ${command.name()} -d '${quote(command.description())}'`,
    );
    for (const child of command.commands) {
      lines.push(
        `complete -c netctl -n '__fish_seen_subcommand_from ${command.name()}' -a ${child.name()} -d '${quote(child.description())}'`,
      );
    }
    for (const option of command.options) {
      if (option.long) {
        lines.push(
          `complete -c netctl -n '__fish_seen_subcommand_from ${command.name()}' -l ${option.long.slice(2)} -d '${quote(option.description)}'`,
        );
      }
    }
  }
  return `${lines.join("\n")}\n`;
}

function quote(text: string): string {
  return text.replaceAll("'", "\\'");
}

// Builds the addon with the address and undefined-behavior sanitizers beside the ordinary build, then runs the
// given compiled tests with it: `node native/sanitize.mjs dist/test/kernel/netlink.test.js`.
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const source = join(here, "src");
const output = join(here, "build", "sanitized", "netagent.node");
const headers = join(dirname(dirname(process.execPath)), "include", "node");
const nodeHeaders = existsSync(join(headers, "node_api.h")) ? headers : "/usr/include/node";
const napi = dirname(createRequire(import.meta.url).resolve("node-addon-api"));
const sources = [source, join(source, "engine")].flatMap((directory) =>
  readdirSync(directory)
    .filter((name) => name.endsWith(".cc"))
    .map((name) => join(directory, name)),
);

mkdirSync(dirname(output), { recursive: true });
const flags = [
  ...[
    "-std=c++20",
    "-shared",
    "-fPIC",
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fno-exceptions",
    "-fno-rtti",
  ],
  ...["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr"],
  ...["-DNODE_GYP_MODULE_NAME=netagent", "-DNAPI_VERSION=8", "-DNAPI_DISABLE_CPP_EXCEPTIONS"],
  ...["-DNODE_ADDON_API_DISABLE_DEPRECATED", `-I${nodeHeaders}`, `-I${napi}`, `-I${source}`],
];
execFileSync("g++", [...flags, ...sources, "-o", output], { stdio: "inherit" });

const runtime = execFileSync("g++", ["-print-file-name=libasan.so"], { encoding: "utf8" }).trim();
const result = spawnSync(process.execPath, ["--conditions=sanitized", "--test", ...process.argv.slice(2)], {
  stdio: "inherit",
  env: {
    ...process.env,
    LD_PRELOAD: runtime,
    // Node itself keeps what it allocated until it exits.
    ASAN_OPTIONS: "detect_leaks=0",
    UBSAN_OPTIONS: "print_stacktrace=1",
    NODE_OPTIONS: "--conditions=sanitized",
  },
});
process.exit(result.status ?? 1);

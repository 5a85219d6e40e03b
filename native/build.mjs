// Builds the addon with npm's bundled node-gyp; runs as the root package's install script.
// Headers that lie beside the node binary are used, so that no download is needed.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const prefix = dirname(dirname(process.execPath));
const npmRoot = process.env.npm_execpath
  ? dirname(dirname(process.env.npm_execpath))
  : join(prefix, "lib/node_modules/npm");
const gyp = [
  join(npmRoot, "node_modules/node-gyp/bin/node-gyp.js"),
  join(prefix, "lib/node_modules/npm/node_modules/node-gyp/bin/node-gyp.js"),
  "/usr/share/nodejs/node-gyp/bin/node-gyp.js",
].find(existsSync);

if (!gyp) {
  console.error("native: cannot find npm's node-gyp; run through npm (npm ci)");
  process.exit(1);
}
const args = [gyp, "rebuild", "--silent", "--jobs", "max"];
if (existsSync(join(prefix, "include/node/node_api.h"))) args.push(`--nodedir=${prefix}`);
const result = spawnSync(process.execPath, args, { cwd: here, stdio: "inherit" });
process.exit(result.status ?? 1);

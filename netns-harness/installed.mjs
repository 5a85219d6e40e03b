// Exits 0 when node_modules holds what package-lock.json asks for. Compares contents, not times: a checkout
// touches the lock file without changing it.
import { readFileSync } from "node:fs";

try {
  const wanted = JSON.parse(readFileSync("package-lock.json", "utf8")).packages;
  const present = JSON.parse(readFileSync("node_modules/.package-lock.json", "utf8")).packages;
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === "" || entry.optional) continue; // optional ones depend on the platform
    if (present[path]?.version !== entry.version || present[path]?.integrity !== entry.integrity)
      process.exit(1);
  }
} catch {
  process.exit(1);
}

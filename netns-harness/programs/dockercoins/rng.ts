/**
 * node rng.js [PORT]
 *
 * Random numbers, slowly: `GET /N` answers N random bytes after a tenth of a second, one request after the other.
 */

import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { hostname } from "node:os";
import { setTimeout as pause } from "node:timers/promises";

const WORK_MS = 100;
const MAX_BYTES = 65_536;
const [port = "80"] = process.argv.slice(2);
let last: Promise<void> = Promise.resolve();

createServer((request, response) => {
  const count = Number(/^\/(\d{1,5})$/.exec(request.url ?? "")?.[1] ?? NaN);
  if (Number.isNaN(count) || count > MAX_BYTES) {
    response.end(`RNG running on ${hostname()}\n`);
    return;
  }
  last = last.then(() => pause(WORK_MS));
  void last.then(() => response.end(randomBytes(count)));
}).listen(Number(port), "0.0.0.0", () => console.log(`rng listening on ${port}`));

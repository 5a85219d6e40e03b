/**
 * node hasher.js [PORT]
 *
 * Hashes, slowly: `POST /` answers the SHA-256 of the body in hex after a tenth of a second.
 */

import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { hostname } from "node:os";

const WORK_MS = 100;
const MAX_BYTES = 1 << 20;
const [port = "80"] = process.argv.slice(2);

createServer((request, response) => {
  if (request.method !== "POST") {
    response.end(`HASHER running on ${hostname()}\n`);
    return;
  }
  const hash = createHash("sha256");
  let length = 0;
  request.on("data", (chunk: Buffer) => {
    length += chunk.length;
    if (length > MAX_BYTES) request.destroy();
    else hash.update(chunk);
  });
  request.on("end", () => setTimeout(() => response.end(hash.digest("hex")), WORK_MS));
}).listen(Number(port), "0.0.0.0", () => console.log(`hasher listening on ${port}`));

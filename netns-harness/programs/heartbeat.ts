/**
 * node heartbeat.js ADDRESS PORT
 *
 * One TCP connection to echo-server.js for as long as it lives: sends a number every 50 ms and prints
 * `beat NUMBER` when it is back. Exits 1 when the connection ends.
 */

import { createConnection } from "node:net";

const BEAT_MS = 50;
const [address = "127.0.0.1", port = "7"] = process.argv.slice(2);

const socket = createConnection({ host: address, port: Number(port), noDelay: true });
let sent = 0;
socket.on("connect", () => {
  setInterval(() => socket.write(`${++sent}\n`), BEAT_MS);
});
socket.on("data", (chunk) => {
  for (const line of chunk.toString().trim().split("\n")) console.log(`beat ${line}`);
});
socket.on("error", (error) => end(error.message));
socket.on("close", () => end("closed"));

function end(why: string): never {
  console.log(`ended: ${why}`);
  process.exit(1);
}

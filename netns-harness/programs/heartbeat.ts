/**
 * node heartbeat.js ADDRESS PORT
 *
 * One TCP connection to echo-server.js for as long as it lives: sends a number every 50 ms and prints
 * `beat NUMBER GAP`, GAP being the time since the previous answer in ms. Exits 1 when the connection ends.
 */

import { createConnection } from "node:net";

const BEAT_MS = 50;
const [address = "127.0.0.1", port = "7"] = process.argv.slice(2);

const socket = createConnection({ host: address, port: Number(port), noDelay: true });
let sent = 0;
let last = performance.now();
socket.on("connect", () => {
  setInterval(() => socket.write(`${++sent}\n`), BEAT_MS);
});
socket.on("data", (chunk) => {
  const now = performance.now();
  for (const line of chunk.toString().trim().split("\n")) {
    console.log(`beat ${line} ${Math.round(now - last)}`);
    last = now;
  }
});
socket.on("error", (error) => end(error.message));
socket.on("close", () => end("closed"));

function end(why: string): never {
  console.log(`ended: ${why}`);
  process.exit(1);
}

/**
 * node udp-ask.js ADDRESS PORT TEXT [COUNT]
 *
 * Sends COUNT datagrams (default 1), each from a new source port and after the previous answer, and prints the answers,
 * an empty line for each that is missing after a second. Exits 1 when one is missing.
 */

import { createSocket } from "node:dgram";

const PATIENCE_MS = 1_000;
const [address = "127.0.0.1", port = "53", text = "hello", count = "1"] = process.argv.slice(2);

for (let asked = 0; asked < Number(count); asked++) {
  try {
    console.log(await ask());
  } catch (error) {
    console.log("");
    console.error(`${address}:${port}: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = 1;
  }
}

/** Connected, so that a refusal (ICMP port unreachable) is an error at once and an answer from elsewhere none. */
async function ask(): Promise<string> {
  const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
  try {
    return await new Promise((resolve, reject) => {
      setTimeout(() => reject(new Error("no answer")), PATIENCE_MS).unref();
      socket.on("error", reject);
      socket.on("message", (answer) => resolve(answer.toString()));
      socket.connect(Number(port), address, () => socket.send(text));
    });
  } finally {
    socket.close();
  }
}

/**
 * node udp-ask.js ADDRESS PORT TEXT
 *
 * Sends one datagram and prints the answer; exits 1 when there is none within a second.
 */

import { createSocket } from "node:dgram";

const PATIENCE_MS = 1_000;
const [address = "127.0.0.1", port = "53", text = "hello"] = process.argv.slice(2);

const socket = createSocket("udp4");
const timer = setTimeout(() => fail("no answer"), PATIENCE_MS);
socket.on("error", (error) => fail(error.message));
socket.on("message", (answer) => {
  clearTimeout(timer);
  console.log(answer.toString());
  socket.close();
});
// Connected, so that a refusal (ICMP port unreachable) is an error at once. An answer from elsewhere is not one.
socket.connect(Number(port), address, () => socket.send(text));

function fail(why: string): never {
  console.error(`${address}:${port}: ${why}`);
  process.exit(1);
}

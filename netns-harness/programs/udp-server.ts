/**
 * node udp-server.js NAME PORT
 *
 * Answers every datagram with `NAME CLIENT-ADDRESS TEXT`.
 */

import { createSocket } from "node:dgram";

const [name = "server", port = "53"] = process.argv.slice(2);

const socket = createSocket("udp4");
socket.on("message", (text, from) => {
  socket.send(`${name} ${from.address} ${text.toString()}`, from.port, from.address);
});
socket.bind(Number(port), "0.0.0.0", () => console.log(`${name} listening on ${port}`));

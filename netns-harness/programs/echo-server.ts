/**
 * node echo-server.js PORT
 *
 * TCP: sends back what it receives, for as long as the connection lives. The peer of heartbeat.js.
 */

import { createServer } from "node:net";

const [port = "7"] = process.argv.slice(2);

const server = createServer((socket) => {
  socket.on("error", () => socket.destroy());
  socket.pipe(socket);
});
server.listen(Number(port), "0.0.0.0", () => console.log(`listening on ${port}`));

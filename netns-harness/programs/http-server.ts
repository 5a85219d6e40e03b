/**
 * node http-server.js NAME PORT
 *
 * Answers every request with `NAME CLIENT-ADDRESS`. Listens on every IPv4 address. `/slow` answers after two seconds,
 * `/bytes/N` with N zero bytes.
 */

import { createServer } from "node:http";

const SLOW_MS = 2_000;
const [name = "server", port = "80"] = process.argv.slice(2);

const server = createServer((request, response) => {
  const bytes = /^\/bytes\/(\d+)$/.exec(request.url ?? "")?.[1];
  if (bytes !== undefined) response.end(Buffer.alloc(Number(bytes)));
  else {
    const page = `${name} ${request.socket.remoteAddress}\n`;
    setTimeout(() => response.end(page), request.url === "/slow" ? SLOW_MS : 0);
  }
});
server.listen(Number(port), "0.0.0.0", () => console.log(`${name} listening on ${port}`));

/**
 * node connect-load.js RATE URL…
 *
 * RATE new HTTP connections a second, evenly over the URLs (http://IP:PORT/), each asked once and closed, until SIGTERM;
 * then waits for those under way and prints one JSON document: `asked`, `answered`, `failures` (by error code; a
 * connection that was accepted and then got no answer is `UNANSWERED`), `answers` (by the first word of the page) and
 * `slowestMs`, the longest any answer took.
 */

import { createConnection } from "node:net";

const TICK_MS = 10;
/** No answer for so long is a failure of its own. */
const PATIENCE_MS = 20_000;
const [rate = "100", ...urls] = process.argv.slice(2);
const targets = urls.map((url) => new URL(url));

const counts = {
  asked: 0,
  answered: 0,
  failures: {} as Record<string, number>,
  answers: {} as Record<string, number>,
  slowestMs: 0,
};
const startedAt = performance.now();
let open = 0;
let stopping = false;

const timer = setInterval(() => {
  // What a late tick has missed is made up for, so that the rate holds on a busy machine.
  const due = Math.floor(((performance.now() - startedAt) / 1000) * Number(rate));
  while (counts.asked < due) ask(targets[counts.asked % targets.length]);
}, TICK_MS);
process.on("SIGTERM", () => {
  clearInterval(timer);
  stopping = true;
  if (open === 0) report();
});
console.log(`asking ${urls.join(" ")}`);

function ask(target: URL | undefined): void {
  if (target === undefined) return;
  counts.asked++;
  open++;
  let text = "";
  let silence = "TIMEOUT";
  const askedAt = performance.now();
  const socket = createConnection({ host: target.hostname, port: Number(target.port || "80") });
  socket.setTimeout(PATIENCE_MS, () => socket.destroy(Object.assign(new Error(), { code: silence })));
  socket.on("connect", () => {
    silence = "UNANSWERED";
    socket.write(`GET ${target.pathname} HTTP/1.0\r\n\r\n`);
  });
  socket.on("data", (chunk) => (text += chunk.toString()));
  socket.on("error", (error: NodeJS.ErrnoException) => count(counts.failures, error.code ?? "ERROR"));
  socket.on("close", (hadError) => {
    open--;
    const body = text.split("\r\n\r\n")[1];
    if (body !== undefined) {
      counts.answered++;
      counts.slowestMs = Math.max(counts.slowestMs, Math.round(performance.now() - askedAt));
      count(counts.answers, body.split(" ")[0] ?? "");
    } else if (!hadError) count(counts.failures, "EMPTY");
    if (stopping && open === 0) report();
  });
}

function count(into: Record<string, number>, key: string): void {
  into[key] = (into[key] ?? 0) + 1;
}

function report(): void {
  console.log(JSON.stringify(counts));
  process.exit(0);
}

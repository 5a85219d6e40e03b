/**
 * node worker.js
 *
 * Mines: takes random bytes from `rng`, has them hashed by `hasher`, and counts in `redis`. A hash that begins with 0
 * is a coin. Whatever fails is tried again, over a new connection to whatever the name stands for then.
 */

import { request } from "node:http";
import { setTimeout as pause } from "node:timers/promises";
import { RedisClient } from "./redis-client.ts";

const WORK_MS = 100;
const RANDOM_BYTES = 32;
const PATIENCE_MS = 1_500;
const RETRY_MS = 200;

const redis = new RedisClient("redis");
console.log("worker listening on nothing, mining");
for (;;) {
  try {
    await pause(WORK_MS);
    const random = await ask("rng", "GET", `/${RANDOM_BYTES}`);
    const hash = (await ask("hasher", "POST", "/", random)).toString();
    await redis.command("INCR", "hashes");
    if (hash.startsWith("0")) {
      await redis.command("HSET", "wallet", hash, random.toString("hex"));
      console.log(`coin ${hash.slice(0, 8)}…`);
    }
  } catch (error) {
    console.log(`trouble: ${error instanceof Error ? error.message : String(error)}`);
    await pause(RETRY_MS);
  }
}

/** One request over a connection of its own; rejects unless the answer is whole and 200. */
function ask(host: string, method: string, path: string, body?: Buffer): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.timeout(PATIENCE_MS);
    const sent = request({ host, method, path, agent: false, signal }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        if (response.complete && response.statusCode === 200) resolve(Buffer.concat(chunks));
        else reject(new Error(`${host}: ${response.statusCode}`));
      });
    });
    sent.on("error", (error) => reject(new Error(`${host}: ${error.message}`)));
    sent.end(body);
  });
}

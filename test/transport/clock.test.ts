import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { test } from "node:test";
import { after } from "../../src/base/time.ts";
import { Clock } from "../../src/transport/clock.ts";

test("after a delay of the process, what waits in a socket is heard before the timer that has become due", async () => {
  const heard: string[] = [];
  const socket = createSocket("udp4");
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  const woken = new Promise<void>((resolve) => {
    const clock = new Clock(() => {
      heard.push("timer");
      resolve();
    });
    clock.wakeAt(after(clock.now(), 5));
  });
  socket.on("message", () => heard.push("packet"));
  await new Promise<void>((sent) => socket.send("x", socket.address().port, "127.0.0.1", () => sent()));
  for (const end = performance.now() + 30; performance.now() < end;);
  await woken;
  socket.close();
  assert.deepEqual(heard, ["packet", "timer"]);
});

import assert from "node:assert/strict";
import { test } from "node:test";
import type { StatusView } from "../../src/agent/status.ts";
import { WebServer } from "../../src/agent/web-server.ts";

const EMPTY: StatusView = {
  node: "node1",
  version: "1",
  nodes: [],
  links: [],
  faults: [],
  networks: [],
  services: [],
  endpoints: [],
};

test("the page loads nothing from elsewhere, and its policy allows just its own script and style", async () => {
  await withServer(async (url) => {
    const page = await fetch(url);
    const policy = page.headers.get("content-security-policy") ?? "";
    assert.match(
      policy,
      /^default-src 'none'; connect-src 'self'; img-src data:; script-src 'sha256-[^']+'; /,
    );
    const text = await page.text();
    assert.deepEqual(text.match(/(src|href)="(?!data:)[^"]*"|@import|url\(/g), null);
    assert.deepEqual(await (await fetch(`${url}status.json`)).json(), EMPTY);
  });
});

test("it shows and changes nothing: other methods and paths are refused", async () => {
  await withServer(async (url) => {
    for (const method of ["POST", "PUT", "DELETE"]) assert.equal((await fetch(url, { method })).status, 405);
    assert.equal((await fetch(`${url}../../etc/passwd`)).status, 404);
    const head = await fetch(url, { method: "HEAD" });
    assert.deepEqual([head.status, await head.text()], [200, ""]);
  });
});

test("an open page hears of changes, and so many may be open", async () => {
  const status = { now: EMPTY };
  await withServer(async (url) => {
    const readers = await Promise.all(Array.from({ length: 16 }, () => eventsOf(url)));
    assert.equal((await fetch(`${url}events`)).status, 503);
    const [first] = readers;
    assert.ok(first);
    assert.deepEqual(await first.next(), EMPTY);
    status.now = { ...EMPTY, node: "renamed" };
    assert.equal((await first.next()).node, "renamed");
    for (const reader of readers) await reader.close();
  }, status);
});

async function withServer(body: (url: string) => Promise<void>, status = { now: EMPTY }): Promise<void> {
  const server = await WebServer.listen({ host: "127.0.0.1", port: 0 }, { view: () => status.now });
  try {
    await body(`http://127.0.0.1:${server.port}/`);
  } finally {
    await server.close();
  }
}

/** The pictures of one open page. */
async function eventsOf(url: string): Promise<{ next(): Promise<StatusView>; close(): Promise<void> }> {
  const response = await fetch(`${url}events`);
  assert.equal(response.status, 200);
  assert.ok(response.body);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  return {
    async next() {
      for (;;) {
        const end = buffered.indexOf("\n\n");
        if (end >= 0) {
          const event = buffered.slice(0, end);
          buffered = buffered.slice(end + 2);
          if (event.startsWith("data: ")) return JSON.parse(event.slice(6)) as StatusView;
          continue;
        }
        const { value, done } = await reader.read();
        assert.ok(!done, "the stream ended");
        buffered += value;
      }
    },
    close: () => reader.cancel(),
  };
}

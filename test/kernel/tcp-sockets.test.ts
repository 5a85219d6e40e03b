import assert from "node:assert/strict";
import { once } from "node:events";
import { createConnection, createServer, type AddressInfo, type Socket } from "node:net";
import { test } from "node:test";
import { parseIp } from "../../src/base/ip.ts";
import { countServed, parseTcpSockets } from "../../src/kernel/tcp-sockets.ts";

test("/proc/net/tcp is read, IPv4 addresses of IPv6 sockets as IPv4", () => {
  const text = [
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
    "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1",
    "   1: 0000000000000000FFFF00000500FF0A:0050 0000000000000000FFFF0000C801A8C0:D2F0 01 0:0 0:0 0 0 0 2",
    "   2: 000080FE00000000FF005450B6AD1DFE:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 3",
  ].join("\n");
  assert.deepEqual(parseTcpSockets(text), [
    { ip: "127.0.0.1", port: 8080, state: "0A" },
    { ip: "10.255.0.5", port: 80, state: "01" },
    { ip: "fe80::5054:ff:fe1d:adb6", port: 80, state: "0A" },
  ]);
});

test("connections are counted on the side that was connected to, also when nobody listens any more", async () => {
  // An address of the loopback network that nobody else here uses.
  const host = "127.77.84.67";
  for (const listenOn of [host, "::"]) {
    const server = createServer((socket) => socket.resume());
    server.listen({ port: 0, host: listenOn });
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const count = (ip: string, ports: readonly number[]): number => countServed([parseIp(ip)], ports);
    assert.equal(count(host, []), 0);
    const client = createConnection({ host, port });
    const [accepted] = (await Promise.all([once(server, "connection"), once(client, "connect")])).flat() as [
      Socket,
    ];
    assert.equal(count(host, []), 1);
    assert.equal(count("127.77.84.68", []), 0, "another address is another endpoint");
    server.close();
    assert.equal(count(host, []), 0, "a connection of its own to somewhere, for all that is known");
    assert.equal(count(host, [port]), 1);
    client.destroy();
    accepted.destroy();
    while (count(host, [port]) > 0) await new Promise((turn) => setTimeout(turn, 10));
  }
});

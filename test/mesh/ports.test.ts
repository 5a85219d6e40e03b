import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { createServer, type AddressInfo, Socket, connect } from "node:net";
import { test } from "node:test";
import { endpointId } from "../../src/base/id.ts";
import { parseIp } from "../../src/base/ip.ts";
import { Ipv6Relay } from "../../src/kernel/ipv6-relay.ts";
import { holderText, PortGuard } from "../../src/kernel/port-holder.ts";
import type { ServedPort } from "../../src/mesh/service-blocks.ts";

test("a port that a process listens on names its holder", async () => {
  const listen =
    "require('net').createServer().listen(0,'127.0.0.1',function(){console.log(this.address().port)})";
  const holder = spawn(process.execPath, ["-e", listen], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const [line] = (await once(holder.stdout, "data")) as [Buffer];
    const port = Number(line.toString());
    using guard = new PortGuard();
    const found = guard.holderOf({ protocol: "tcp", port });
    assert.ok(found !== undefined);
    assert.equal(
      holderText(found),
      `port ${port}/tcp is held by ${found.command ?? ""} (pid ${holder.pid ?? 0})`,
    );
    assert.equal(guard.holderOf({ protocol: "udp", port }), undefined);
  } finally {
    holder.kill("SIGKILL");
  }
});

test("a reserved port is refused to others and refuses clients at once", async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  using guard = new PortGuard();
  const wanted = { protocol: "tcp", port } as const;
  assert.deepEqual(guard.reserve([wanted]), [wanted]);
  await new Promise((resolve) => server.close(resolve));
  assert.deepEqual(guard.reserve([wanted]), []);
  assert.equal(guard.holderOf(wanted), undefined);
  const thief = createServer();
  const refused = await new Promise<NodeJS.ErrnoException>((resolve) => {
    thief.once("error", resolve);
    thief.listen(port, "0.0.0.0");
  });
  assert.equal(refused.code, "EADDRINUSE");
  const client = connect(port, "127.0.0.1");
  const error = await new Promise<NodeJS.ErrnoException>((resolve) => client.once("error", resolve));
  assert.equal(error.code, "ECONNREFUSED");
  guard.reserve([]);
  await new Promise<void>((resolve) => thief.listen(port, "0.0.0.0", resolve));
  await new Promise((resolve) => thief.close(resolve));
});

test("the relay carries TCP and UDP from ::1 to IPv4 backends, past one that does not answer", async () => {
  const tcp = createServer((connection) => connection.end("hello over tcp"));
  await new Promise<void>((resolve) => tcp.listen(0, "127.0.0.1", resolve));
  const target = (tcp.address() as AddressInfo).port;
  const udp = createSocket("udp4");
  udp.on("message", (bytes, from) => udp.send(`hello ${bytes.toString()}`, from.port, from.address));
  await new Promise<void>((resolve) => udp.bind(target, "127.0.0.1", resolve));
  const backends = [{ endpoint: endpointId("a"), ip: parseIp("127.0.0.1"), port: target }];
  const gone = { endpoint: endpointId("b"), ip: parseIp("127.0.0.2"), port: 1 };
  const port = await freePort();
  const served = (protocol: "tcp" | "udp", withGone: boolean): ServedPort => ({
    protocol,
    port,
    affinity: "none",
    backends: withGone ? [...backends, gone] : backends,
  });
  const relay = new Ipv6Relay(({ text }) => assert.fail(text));
  // One published on an address of another node alone is no problem here.
  const elsewhere = { ...served("tcp", false), address: parseIp("2001:db8::7") };
  relay.update([[served("tcp", true)], [served("udp", false)], [elsewhere]]);
  for (let i = 0; i < 8; i++) assert.equal(await readAll(port), "hello over tcp");
  const client = createSocket("udp6");
  const answer = new Promise<string>((resolve) =>
    client.once("message", (bytes) => resolve(bytes.toString())),
  );
  client.send("udp", port, "::1");
  assert.equal(await answer, "hello udp");
  client.close();
  relay.close();
  await assert.rejects(readAll(port), { code: "ECONNREFUSED" });
  udp.close();
  tcp.close();
});

async function readAll(port: number): Promise<string> {
  const socket = new Socket();
  let text = "";
  await new Promise<void>((resolve, reject) => {
    socket.on("data", (chunk) => (text += chunk.toString()));
    socket.once("error", reject);
    socket.once("end", resolve);
    socket.connect(port, "::1");
  });
  socket.destroy();
  return text;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "::1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { release } from "node:os";
import { dirname, join, resolve } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { parseIp } from "../../src/base/ip.ts";
import { Engine } from "../../src/kernel/engine.ts";
import { Netns } from "../../src/kernel/netns.ts";
import { EngineLab, ip, LAB_VNI, type LabOptions, nativeProgram, type Side } from "./engine-lab.ts";

const project = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
const needs = {
  skip: process.getuid?.() !== 0 || !existsSync("/dev/net/tun") ? "needs root and /dev/net/tun" : false,
};
/** Superframes of the engine leave it whole where the kernel can cut them, and cut where not: both are tried. */
const PAIRS: readonly (readonly [readonly [Side, Side], boolean])[] = [
  [["engine", "engine"], true],
  [["engine", "engine"], false],
  [["engine", "kernel"], true],
  [["engine", "kernel"], false],
  [["kernel", "engine"], true],
];
/** TUN_F_UDP_TUNNEL_GSO. */
const kernelCuts = /^([7-9]|[1-9]\d+)\.|^6\.(1[7-9]|[2-9]\d)\./.test(release());
const needsTunnelOffload = {
  skip: needs.skip !== false ? needs.skip : kernelCuts ? false : "needs Linux 6.17",
};

test("segmentation, coalescing, parsing and tables hold under the sanitizers and a short fuzz", () => {
  execFileSync(join(project, "native/test/run.sh"), {
    env: { ...process.env, FUZZ_SECONDS: "3" },
    stdio: ["ignore", "ignore", "inherit"],
  });
});

// `traffic` runs while this process waits in a synchronous call: every test below also shows that a blocked
// event loop stops no frame.
for (const [sides, tunnelOffload] of PAIRS) {
  const name = `${sides.join(" and ")}${tunnelOffload ? "" : ", segmenting by itself,"}`;

  test(`${name} exchange ping, UDP of all sizes and TCP both ways over IPv4`, needs, async () => {
    await using lab = await openLab({ sides, tunnelOffload });
    exchange(lab, "ipv4");
  });

  test(`${name} do the same over an IPv6 underlay, IPv6 inside`, needs, async () => {
    await using lab = await openLab({ sides, tunnelOffload, underlay: "ipv6", layout: "macvlan" }, "ipv6");
    exchange(lab, "ipv6");
  });

  test(
    `${name} deliver odd frames byte for byte: options, fragments, no checksum, unknown protocols`,
    needs,
    async () => {
      await using lab = await openLab({ sides, tunnelOffload });
      for (const from of [0, 1] as const) {
        assert.equal(await lab.frames(from, 3000), "3000 frames came as they were sent");
      }
      lab.traffic(0, "ping", lab.address(1), "1");
    },
  );

  test(`${name} lose no byte of TCP when the underlay loses and doubles packets`, needs, async () => {
    await using lab = await openLab({ sides, tunnelOffload });
    // The copy overtakes what is on its way through the bridge.
    for (const [from, to] of [
      ["p0", "p1"],
      ["p1", "p0"],
    ] as const) {
      lab.run(
        lab.wire,
        "nft",
        `add table netdev twice; add chain netdev twice ${from} { type filter hook ingress device ${from} priority 0; };` +
          `add rule netdev twice ${from} udp dport 4789 numgen random mod 100 < 3 dup to ${to}`,
      );
    }
    for (const side of [0, 1] as const) {
      lab.run(
        lab.host(side),
        "nft",
        "add table inet loss; add chain inet loss in { type filter hook input priority 0; };" +
          "add rule inet loss in udp dport 4789 numgen random mod 100 < 2 drop",
      );
    }
    for (const direction of ["up", "down"]) lab.traffic(0, "bulk", lab.address(1), "8", direction, "4");
  });
}

test(
  "a flood of SYNs, each of another flow, passes or is dropped, and nothing is the worse for it",
  needs,
  async () => {
    await using lab = await openLab({ sides: ["engine", "engine"] });
    const flood = ["send", "eth0", lab.mac(0), lab.mac(1), "50000", "SYN"];
    lab.run(lab.endpoint(0), nativeProgram("frames"), ...flood);
    const [sender, receiver] = lab.engines.map((engine) => engine?.counters());
    assert.ok(sender !== undefined && receiver !== undefined);
    assert.ok(receiver.rxFrames > 0 && receiver.rxDropChecksum === 0);
    lab.traffic(0, "ping", lab.address(1), "3");
    lab.traffic(0, "bulk", lab.address(1), "8", "up", "4");
    // It also sleeps again.
    await until(() => engineThreads().length === 4 && engineThreads().every((state) => state === "S"));
  },
);

test("superframes go out whole where the kernel cuts them", needsTunnelOffload, async () => {
  await using lab = await openLab({ sides: ["engine", "engine"] });
  lab.traffic(0, "bulk", lab.address(1), "64", "up", "1");
  const counters = lab.engines[0]?.counters();
  assert.ok(counters !== undefined && counters.txSuperframes > 0);
  assert.equal(counters.txWhole, counters.txSuperframes);
});

test(
  "superframes are cut here where segments do not fit the underlay, or IPsec is to see them",
  needs,
  async () => {
    await using lab = await openLab({ sides: ["engine", "engine"] });
    // Of others: that there is any policy is enough.
    const others = "src 203.0.113.1 dst 203.0.113.2 dir out action allow".split(" ");
    lab.run(lab.host(1), "ip", "xfrm", "policy", "add", ...others);
    lab.traffic(0, "bulk", lab.address(1), "16", "down", "2");
    lab.run(lab.host(0), "ip", "link", "set", "u0", "mtu", "1400");
    lab.traffic(0, "bulk", lab.address(1), "4", "up", "2");
    for (const engine of lab.engines) assert.equal(engine?.counters().txWhole, 0);
  },
);

test("superframes cross as runs: far fewer messages and writes than frames", needs, async () => {
  await using lab = await openLab({ sides: ["engine", "engine"], tunnelOffload: false });
  lab.traffic(0, "bulk", lab.address(1), "64", "up", "1");
  const [sender, receiver] = lab.engines.map((engine) => engine?.counters());
  assert.ok(sender !== undefined && receiver !== undefined);
  assert.ok(sender.txFrames > 5 * sender.txSends, `${sender.txFrames} frames in ${sender.txSends} messages`);
  assert.ok(
    receiver.rxFrames > 5 * receiver.rxWrites,
    `${receiver.rxFrames} frames in ${receiver.rxWrites} writes`,
  );
});

test("a frame whose sender does not own its source address is dropped and counted", needs, async () => {
  await using lab = await openLab({ sides: ["engine", "engine"] });
  lab.traffic(0, "ping", lab.address(1), "3");
  lab.publish(1, "192.0.2.77");
  assert.throws(() => lab.traffic(0, "ping", lab.address(1), "1"));
  assert.ok((lab.engines[1]?.counters().rxDropWrongVtep ?? 0) > 0);
  lab.publish(1);
  lab.traffic(0, "ping", lab.address(1), "3");
});

test("addresses that nobody has are not asked for on the underlay", needs, async () => {
  await using lab = await openLab({ sides: ["engine", "engine"] });
  const before = lab.engines[0]?.counters();
  assert.throws(() => lab.traffic(0, "ping", "10.99.0.77", "1"));
  const after = lab.engines[0]?.counters();
  assert.ok(before !== undefined && after !== undefined);
  assert.ok(after.txDropUnknownIp > before.txDropUnknownIp);
  assert.equal(after.txFrames, before.txFrames);
});

test("garbage on the port is counted and harms nobody", needs, async () => {
  await using lab = await openLab({ sides: ["engine", "engine"] });
  for (const bytes of [0, 1, 8, 21, 22, 60, 1400]) {
    lab.run(lab.host(0), "bash", "-c", `head -c ${bytes} /dev/urandom > /dev/udp/${lab.vtep(1)}/4789`);
  }
  // A sound header with an unknown VNI, and one with ours and an owner nobody knows.
  for (const head of ["\\x08\\0\\0\\0\\0\\0\\x09\\0", "\\x08\\0\\0\\0\\0\\x10\\x01\\0"]) {
    lab.run(lab.host(0), "bash", "-c", `printf '${head}%040d' 0 > /dev/udp/${lab.vtep(1)}/4789`);
  }
  lab.traffic(0, "ping", lab.address(1), "3");
  const counters = lab.engines[1]?.counters();
  assert.ok(counters !== undefined);
  assert.ok(counters.rxDropHeader >= 4, `${counters.rxDropHeader} bad headers`);
  assert.equal(counters.rxDropUnknownVni, 1);
  assert.equal(counters.rxDropUnknownSource, 1);
});

test("an idle engine sleeps", needs, async () => {
  await using lab = await openLab({ sides: ["engine", "engine"], spinMicros: 1000 });
  lab.traffic(0, "bulk", lab.address(1), "16", "down", "2");
  await until(() => engineThreads().length === 4 && engineThreads().every((state) => state === "S"));
  const before = engineTicks();
  lab.run(lab.endpoint(0), "true");
  assert.equal(engineTicks(), before);
});

test("a TAP device deleted under the engine leaves it asleep and the network removable", needs, async () => {
  await using lab = await openLab({ sides: ["engine", "engine"] });
  lab.traffic(0, "ping", lab.address(1), "2");
  ip("-n", lab.overlay(0), "link", "del", "ov0");
  await until(() => engineThreads().every((state) => state === "S"));
  assert.equal(lab.engines[0]?.removeNetwork(LAB_VNI), true);
  assert.equal(lab.engines[0]?.removeNetwork(LAB_VNI), false);
});

test("engines that come and go leave no thread, device or descriptor behind", needs, async () => {
  await using lab = await openLab({ sides: ["kernel", "kernel"] });
  using host = Netns.open(`/run/netns/${lab.host(0)}`);
  const devices = lab.run(lab.host(0), "ip", "-brief", "link");
  const cycle = () => {
    const addresses = [parseIp("127.0.0.1"), parseIp("::1")];
    const engine = new Engine({ addresses, port: 14789, netnsFd: host.fd });
    engine.publish([]);
    engine.close();
    engine.close();
    assert.throws(() => engine.counters(), TypeError);
  };
  cycle();
  const before = [readdirSync("/proc/self/fd").length, readdirSync("/proc/self/task").length];
  for (let i = 0; i < 20; i++) cycle();
  assert.deepEqual([readdirSync("/proc/self/fd").length, readdirSync("/proc/self/task").length], before);
  assert.equal(lab.run(lab.host(0), "ip", "-brief", "link"), devices);
});

test("a port that is taken is an error that says which", needs, () => {
  const options = { addresses: [parseIp("127.0.0.1")], port: 14790, tunnelOffload: false };
  using engine = new Engine(options);
  assert.ok(engine);
  assert.throws(() => new Engine(options), {
    code: "EADDRINUSE",
    syscall: "bind",
    object: "UDP 127.0.0.1 port 14790",
  });
});

/** A lab with `traffic serve` at endpoint 1. */
async function openLab(
  options: LabOptions,
  family: "ipv4" | "ipv6" = "ipv4",
): Promise<EngineLab & AsyncDisposable> {
  const lab = new EngineLab(options);
  await lab.serve(1, family);
  return Object.assign(lab, { [Symbol.asyncDispose]: () => Promise.resolve(lab[Symbol.dispose]()) });
}

function exchange(lab: EngineLab, family: "ipv4" | "ipv6"): void {
  const address = lab.address(1, family);
  lab.traffic(0, "ping", address, "3");
  // Up to the MTU, one byte beyond (fragments inside), many fragments.
  for (const size of ["1", "1000", "1420", "1423", "9000"]) lab.traffic(0, "udp", address, "5", size);
  for (const direction of ["up", "down"]) {
    lab.traffic(0, "bulk", address, "32", direction, "1");
    lab.traffic(0, "bulk", address, "32", direction, "8");
  }
  lab.traffic(0, "crr", address, "0.3");
  lab.traffic(0, "pps", address, "0.2", "22", "4");
  for (const engine of lab.engines) {
    const counters = engine?.counters();
    if (counters === undefined) continue;
    assert.ok(counters.txAnswered > 0);
    for (const name of [
      "rxDropChecksum",
      "rxDropWrongVtep",
      "rxDropHeader",
      "txDropMalformed",
      "txDropTooBig",
    ] as const) {
      assert.equal(counters[name], 0, name);
    }
  }
}

/** Scheduler states of this process's engine threads. */
function engineThreads(): string[] {
  return engineStats().map((fields) => fields[0] ?? "");
}

/** Processor time they have used, in ticks. */
function engineTicks(): number {
  return engineStats().reduce((sum, fields) => sum + Number(fields[11]) + Number(fields[12]), 0);
}

/** Fields of /proc/…/stat from the state on. */
function engineStats(): string[][] {
  return readdirSync("/proc/self/task").flatMap((task) => {
    const text = readFileSync(`/proc/self/task/${task}/stat`, "utf8");
    if (!/\(engine-[rt]x\)/.test(text)) return [];
    return [text.slice(text.lastIndexOf(")") + 2).split(" ")];
  });
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    assert.ok(i < 1000, "condition does not become true");
    await new Promise((done) => setTimeout(done, 5));
  }
}

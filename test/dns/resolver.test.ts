import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "../../src/base/ip.ts";
import { seededRandom } from "../../src/base/random.ts";
import { malformed } from "../../src/dns/resolver.ts";
import { responseCode } from "../../src/wire/dns/message.ts";
import {
  answers,
  ask,
  backend,
  bytesOf,
  dataOf,
  endpoint,
  fill,
  gist,
  packetOf,
  roundRobin,
  VIP,
  zoneOf,
} from "./ask.ts";

const WEB = { name: "web", vip: VIP, ports: [] } as const;

test("a service name answers its virtual IP, tasks.NAME its backends", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5"), backend("web.2", "10.0.1.6")]);
  assert.equal(gist(ask(zone, "web", "A")), "10.0.1.2");
  assert.equal(gist(ask(zone, "tasks.web", "A")), "10.0.1.5 10.0.1.6");
  assert.equal(gist(ask(zone, "web.1", "A")), "10.0.1.5");
});

test("a dnsrr service answers its backends under both names", () => {
  const zone = zoneOf("blue", [roundRobin("web.1", "10.0.1.5"), roundRobin("web.2", "10.0.1.6")]);
  for (const name of ["web", "tasks.web"])
    assert.equal(gist(ask(zone, name, "A")), "10.0.1.5 10.0.1.6", name);
});

test("aliases of services and of endpoints are names like any other, and shared ones are merged", () => {
  const service = { name: "web", aliases: ["www"], vip: VIP, ports: [] };
  const zone = zoneOf("blue", [
    backend("web.1", "10.0.1.5", { service }),
    endpoint("db1", "10.0.1.8", { taskAliases: ["db", "0123456789ab"] }),
    endpoint("db2", "10.0.1.9", { taskAliases: ["db"] }),
  ]);
  assert.equal(gist(ask(zone, "www", "A")), "10.0.1.2");
  assert.equal(gist(ask(zone, "tasks.www", "A")), "10.0.1.5");
  assert.equal(gist(ask(zone, "0123456789ab", "A")), "10.0.1.8");
  assert.equal(gist(ask(zone, "db.blue", "A")), "10.0.1.8 10.0.1.9");
});

test("names are tried from the right: whole on every network, then with ever longer network names", () => {
  const zones = [
    zoneOf("blue", [endpoint("a.b", "10.0.1.1"), endpoint("db", "10.0.1.3")]),
    zoneOf("c.d", [endpoint("a.b", "10.0.2.1"), endpoint("db", "10.0.2.3")]),
    zoneOf("d", [endpoint("a.b.c", "10.0.3.1")]),
    zoneOf("b.c.d", [endpoint("a", "10.0.4.1")]),
  ];
  const golden: Readonly<Record<string, string>> = {
    "a.b": "10.0.1.1", // the first network that knows it; nothing is merged
    db: "10.0.1.3",
    "db.c.d": "10.0.2.3",
    "db.blue": "10.0.1.3",
    "a.b.c": "10.0.3.1",
    "a.b.c.d": "10.0.3.1", // (a.b.c, d) comes before (a.b, c.d) and (a, b.c.d)
    "a.b.blue": "10.0.1.1",
    "a.blue": "NXDOMAIN",
    "a.b.c.blue": "NXDOMAIN",
    a: "10.0.4.1",
    "x.y": "forward",
  };
  for (const [name, expected] of Object.entries(golden))
    assert.equal(gist(ask(zones, name, "A")), expected, name);
  assert.equal(gist(ask(zones.slice(1), "a.b.c.d", "A")), "10.0.3.1");
  assert.equal(gist(ask(zones.slice(3), "a.b.c.d", "A")), "10.0.4.1");
});

test("case and a trailing dot make no difference, and the answer repeats the question as it was written", () => {
  const zone = zoneOf("Blue", [backend("Web.1", "10.0.1.5")]);
  for (const name of ["WEB", "web.", "wEb.bLUE", "web.blue."])
    assert.equal(gist(ask(zone, name, "A")), "10.0.1.2", name);
  assert.equal(packetOf(ask(zone, "wEb.bLUE", "A")).questions?.[0]?.name, "wEb.bLUE");
  assert.equal(gist(ask(zone, "5.1.0.10.IN-ADDR.arpa", "PTR")), "Web.1.Blue");
});

test("a known name without a record of the kind is empty with an SOA, never NXDOMAIN and never forwarded", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  for (const type of ["AAAA", "MX", "TXT", "NS", "SRV", "PTR", "SVCB", "HTTPS", "UNKNOWN_4242"]) {
    for (const name of ["web", "tasks.web", "web.1", "web.blue"]) {
      const outcome = ask(zone, name, type);
      assert.equal(gist(outcome), "NODATA", `${name} ${type}`);
      const soa = packetOf(outcome).authorities?.[0];
      assert.deepEqual(soa?.type === "SOA" ? [soa.ttl, soa.data.minimum] : soa, [5, 5]);
    }
  }
  assert.equal(gist(ask(zone, "web", "ANY")), "10.0.1.2");
});

test("an address of IPv6 is told to who asks for AAAA, and an A question about it is empty", () => {
  const zone = zoneOf("blue", [endpoint("six", "fd00::5"), endpoint("both", "10.0.1.5")]);
  fill(zone, "blue", [endpoint("six", "fd00::5"), endpoint("six", "10.0.1.5")], [], 1);
  assert.equal(gist(ask(zone, "six", "AAAA")), "fd00::5");
  assert.equal(gist(ask(zone, "six", "A")), "10.0.1.5");
  assert.equal(gist(ask(zone, "six", "ANY")), "10.0.1.5 fd00::5");
  const only = zoneOf("blue", [endpoint("six", "fd00::5")]);
  assert.equal(gist(ask(only, "six", "A")), "NODATA");
});

test("an unknown name is forwarded, unless it can only be ours or the network is internal", () => {
  const zone = zoneOf("blue", []);
  for (const name of ["example.com", "printer", ""]) assert.equal(gist(ask(zone, name, "A")), "forward");
  for (const name of ["tasks.nothing", "nothing.blue", "a.b.blue"])
    assert.equal(gist(ask(zone, name, "A")), "NXDOMAIN", name);
  const elsewhere = { isElsewhere: (name: string) => name === "redis" };
  assert.equal(gist(ask(zone, "redis", "A", elsewhere)), "NXDOMAIN");
  for (const name of ["example.com", "printer", "8.8.8.8.in-addr.arpa"])
    assert.equal(gist(ask(zone, name, "A", { mayForward: false })), "NXDOMAIN", name);
});

test("while the tables are being learned an unknown name waits and a known one does not", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  for (const name of ["db", "db.blue", "example.com", "9.1.0.10.in-addr.arpa"])
    assert.equal(gist(ask(zone, name, "PTR", { learning: true })), "hold", name);
  assert.equal(gist(ask(zone, "web", "A", { learning: true })), "10.0.1.2");
});

test("a draining backend keeps the virtual IP and leaves the tasks", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5", { state: "draining" })]);
  assert.equal(gist(ask(zone, "web", "A")), "10.0.1.2");
  assert.equal(gist(ask(zone, "tasks.web", "A")), "NODATA");
  assert.equal(gist(ask(zone, "web.1", "A")), "NODATA");
});

test("a suspended endpoint stands in where nobody serves, and only there", () => {
  const gone = { state: "suspended" } as const;
  const zone = zoneOf("blue", [
    roundRobin("web.1", "10.0.1.5"),
    roundRobin("web.2", "10.0.1.6", gone),
    endpoint("db", "10.0.1.9", gone),
  ]);
  assert.equal(gist(ask(zone, "web", "A")), "10.0.1.5");
  assert.equal(gist(ask(zone, "web.2", "A")), "10.0.1.6");
  assert.equal(gist(ask(zone, "db", "A")), "10.0.1.9");
  assert.equal(gist(ask(zone, "9.1.0.10.in-addr.arpa", "PTR")), "db.blue");
  fill(zone, "blue", [roundRobin("web.2", "10.0.1.6", gone)], [], 1);
  assert.equal(gist(ask(zone, "tasks.web", "A")), "10.0.1.6");
});

test("a service outlives its backends: virtual IP, or empty where it has none", () => {
  const zone = zoneOf("blue", [], [WEB, { name: "plain", vip: undefined, ports: [] }]);
  assert.equal(gist(ask(zone, "web", "A")), "10.0.1.2");
  assert.equal(gist(ask(zone, "plain", "A")), "NODATA");
  assert.equal(gist(ask(zone, "tasks.web", "A")), "NODATA");
});

test("a name that vanished stays known for a minute, so that it is not asked upstream", () => {
  const zone = zoneOf("blue", [endpoint("db", "10.0.1.9")]);
  fill(zone, "blue", [], [], 1000);
  for (const name of ["db", "db.blue"]) assert.equal(gist(ask(zone, name, "A", { at: 2_000 })), "NODATA");
  assert.equal(gist(ask(zone, "db", "A", { at: 70_000 })), "forward");
  // Another network's living name is not hidden by a memory.
  const green = zoneOf("green", [endpoint("db", "10.0.2.9")]);
  assert.equal(gist(ask([zone, green], "db", "A", { at: 2_000 })), "10.0.2.9");
  fill(zone, "blue", [endpoint("db", "10.0.1.7")], [], 3000);
  assert.equal(gist(ask(zone, "db", "A", { at: 4_000 })), "10.0.1.7");
});

test("start-first and stop-first replacement of the only backend never says that there is no such name", () => {
  for (const order of [
    ["old", "new", "-old"],
    ["old", "-old", "new"],
  ] as const) {
    const zone = zoneOf("blue", []);
    const present = new Map<string, string>();
    let at = 0;
    for (const change of order) {
      if (change === "-old") present.delete("old");
      else present.set(change, change === "old" ? "10.0.1.5" : "10.0.1.6");
      at += 1000;
      fill(
        zone,
        "blue",
        [...present].map(([name, ip]) => roundRobin(name, ip)),
        [],
        at,
      );
      assert.notEqual(gist(ask(zone, "web", "A", { at })), "NXDOMAIN");
      assert.notEqual(gist(ask(zone, "web", "A", { at })), "forward");
    }
  }
});

test("PTR answers endpoints and virtual IPs; other addresses of the network are nobody's business outside", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  assert.equal(gist(ask(zone, "5.1.0.10.in-addr.arpa", "PTR")), "web.1.blue");
  assert.equal(gist(ask(zone, "5.1.0.10.in-addr.arpa", "A")), "NODATA");
  assert.equal(gist(ask(zone, "2.1.0.10.in-addr.arpa", "PTR")), "web.blue");
  assert.equal(gist(ask(zone, "77.1.0.10.in-addr.arpa", "PTR")), "NXDOMAIN");
  assert.equal(gist(ask(zone, "77.2.0.10.in-addr.arpa", "PTR")), "forward");
  const six = zoneOf("blue", [endpoint("six", "fd00::5")]);
  const digits = `5${".0".repeat(29)}.d.f`;
  assert.equal(gist(ask(six, `${digits}.ip6.arpa`, "PTR")), "six.blue");
});

test("SRV knows target and published ports, of the service and of each backend", () => {
  const ports = [
    { published: 8000, target: 80, protocol: "tcp" },
    { published: 80, target: 8080, protocol: "tcp" },
    { published: 53, target: 5353, protocol: "udp" },
  ] as const;
  const zone = zoneOf(
    "blue",
    [backend("web.1", "10.0.1.5"), backend("web.2", "10.0.1.6")],
    [{ ...WEB, ports }],
  );
  const srv = (name: string, type = "SRV"): unknown[] =>
    (packetOf(ask(zone, name, type)).answers ?? [])
      .map((answer) => (answer.type === "SRV" ? `${answer.data.port} ${answer.data.target}` : "?"))
      .sort();
  assert.deepEqual(srv("_8000._tcp.web"), ["80 web.blue"]);
  assert.deepEqual(srv("_80._tcp.web"), ["80 web.blue"], "a target port comes before a published one");
  assert.deepEqual(srv("_53._udp.web.blue"), ["5353 web.blue"]);
  assert.deepEqual(srv("_80._tcp.tasks.web"), ["80 web.1.blue", "80 web.2.blue"]);
  const additionals = packetOf(ask(zone, "_80._tcp.tasks.web", "SRV")).additionals ?? [];
  assert.deepEqual(additionals.map((one) => `${one.name} ${String(dataOf(one))}`).sort(), [
    "web.1.blue 10.0.1.5",
    "web.2.blue 10.0.1.6",
  ]);
  assert.equal(gist(ask(zone, "_80._tcp.web", "A")), "NODATA");
  assert.equal(gist(ask(zone, "_81._tcp.web", "SRV")), "NXDOMAIN");
  assert.equal(gist(ask(zone, "_80._udp.web", "SRV")), "NXDOMAIN");
  assert.equal(gist(ask(zone, "_80._tcp.example.com", "SRV")), "forward");
});

test("ports of a service that only rows tell of are known, too", () => {
  const ports = [{ published: 8000, target: 80, protocol: "tcp" }] as const;
  const service = { name: "web", aliases: ["www"], vip: VIP, ports };
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5", { service })]);
  const answer = packetOf(ask(zone, "_8000._tcp.www", "SRV")).answers?.[0];
  assert.deepEqual(answer?.type === "SRV" && [answer.data.port, answer.data.target], [80, "web.blue"]);
});

for (const count of [1, 28, 29, 30, 200, 5000]) {
  test(`${count} addresses: whole if they fit, cut at whole records with TC over UDP, a random part over TCP`, () => {
    const endpoints = Array.from({ length: count }, (_, index) =>
      roundRobin(`web.${index}`, `10.${index >> 16}.${(index >> 8) & 255}.${index & 255}`),
    );
    const zone = zoneOf("blue", endpoints);
    for (const [edns, transport, limit] of [
      [undefined, "udp", 512],
      [100, "udp", 512],
      [1232, "udp", 1232],
      [4096, "udp", 4096],
      [65535, "udp", 4096],
      [undefined, "tcp", 65535],
    ] as const) {
      const outcome = ask(zone, "tasks.web", "A", { transport, ...(edns === undefined ? {} : { edns }) });
      const fixed = 12 + 15 + (edns === undefined ? 0 : 11); // header, question, OPT
      const fitting = Math.min(count, Math.floor((limit - fixed) / 16));
      assert.equal(answers(outcome).length, fitting, `${transport} ${edns}`);
      assert.equal(new Set(answers(outcome)).size, fitting);
      assert.ok(bytesOf(outcome).length <= limit);
      assert.equal(packetOf(outcome).flag_tc, transport === "udp" && fitting < count);
      const opt = packetOf(outcome).additionals?.find((record) => record.type === "OPT");
      assert.equal(opt !== undefined, edns !== undefined, "an OPT for those who sent one");
    }
  });
}

test("answers are shuffled evenly", () => {
  const ips = ["10.0.1.5", "10.0.1.6", "10.0.1.7"];
  const zone = zoneOf(
    "blue",
    ips.map((ip, index) => roundRobin(`web.${index}`, ip)),
  );
  const random = seededRandom(7);
  const orders = new Map<string, number>();
  const rounds = 60_000;
  for (let i = 0; i < rounds; i++) {
    const bytes = bytesOf(ask(zone, "web", "A", { random }));
    // The last byte of each address, straight from the message: decoding it all would take long.
    const order = [0, 1, 2].map((index) => bytes[12 + 9 + 16 * index + 15]).join();
    orders.set(order, (orders.get(order) ?? 0) + 1);
  }
  assert.equal(orders.size, 6);
  // Chi square with 5 degrees of freedom is above 25 once in 7,000 seeds.
  let chi = 0;
  for (const count of orders.values()) chi += (count - rounds / 6) ** 2 / (rounds / 6);
  assert.ok(chi < 25, `uneven: ${[...orders.values()].join(" ")}`);
});

test("headers: an answer, recursion available, not authoritative, RD as it came", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  for (const flags of [0, 0x0100]) {
    const packet = packetOf(ask(zone, "web", "A", { flags }));
    assert.deepEqual(
      [packet.id, packet.flag_qr, packet.flag_aa, packet.flag_ra, packet.flag_rd],
      [4711, true, false, true, flags !== 0],
    );
  }
});

test("TTLs are short: half a minute for virtual IPs, five seconds for the rest", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  const ttl = (name: string, type = "A"): unknown => {
    const answer = packetOf(ask(zone, name, type)).answers?.[0];
    return answer !== undefined && "ttl" in answer ? answer.ttl : undefined;
  };
  assert.deepEqual([ttl("web"), ttl("tasks.web"), ttl("web.1")], [30, 5, 5]);
  assert.equal(ttl("5.1.0.10.in-addr.arpa", "PTR"), 5);
});

test("only the first of several questions is answered", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  const packet = packetOf(ask(zone, "web", "A", { more: [{ type: "A", name: "web.1" }] }));
  assert.deepEqual([packet.questions?.length, packet.answers?.length], [1, 1]);
});

test("other opcodes, classes and versions of EDNS are refused as the standards say", () => {
  const zone = zoneOf("blue", [backend("web.1", "10.0.1.5")]);
  assert.equal(gist(ask(zone, "web", "A", { flags: 0x2000 })), "NOTIMP");
  assert.equal(gist(ask(zone, "version.bind", "TXT", { class: "CH" })), "REFUSED");
  const outcome = ask(zone, "web", "A", { edns: 1232, ednsVersion: 1 });
  const opt = packetOf(outcome).additionals?.[0];
  assert.deepEqual(opt?.type === "OPT" && [opt.extendedRcode, opt.ednsVersion], [1, 0]);
  assert.equal(gist(outcome), "NODATA", "the low bits of BADVERS are zero");
});

test("a message without a readable question is told so, unless not even its id can be read", () => {
  const garbage = Uint8Array.from([0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 77]);
  const answer = malformed(garbage) ?? new Uint8Array();
  assert.deepEqual([...answer.subarray(0, 2), responseCode(answer), answer[2]], [0x12, 0x34, 1, 0x81]);
  assert.equal(malformed(garbage.subarray(0, 11)), undefined);
});

test("rows of others with names no message can carry hurt nobody", () => {
  const long = "x".repeat(64);
  const zone = zoneOf("blue", [
    endpoint(long, "10.0.1.5"),
    endpoint("", "10.0.1.6"),
    endpoint("ok", "10.0.1.7"),
    endpoint("ümlaut", "10.0.1.8"),
    backend("a..b", "10.0.1.9", { service: { name: long, aliases: [""], vip: VIP, ports: [] } }),
  ]);
  assert.equal(gist(ask(zone, "ok", "A")), "10.0.1.7");
  for (const last of [5, 6, 8, 9])
    assert.equal(gist(ask(zone, `${last}.1.0.10.in-addr.arpa`, "PTR")), "NXDOMAIN", String(last));
  assert.equal(parseIp("10.0.1.5"), "10.0.1.5");
});

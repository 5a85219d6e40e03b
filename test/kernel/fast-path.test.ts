/** The fast path's programs, run by the kernel on frames of ours (BPF_PROG_TEST_RUN). Needs root. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteReader, ByteWriter } from "../../src/base/bytes.ts";
import { vni } from "../../src/base/id.ts";
import { type IpAddr, parseIp } from "../../src/base/ip.ts";
import { type MacAddr, parseMac } from "../../src/base/mac.ts";
import { BpfMap, BpfProgram } from "../../src/kernel/bpf.ts";
import {
  encodeEndpoint,
  encodeEndpointKey,
  encodeVtep,
  encodeVtepKey,
  ENDPOINT_KEY_BYTES,
  ENDPOINT_VALUE_BYTES,
  STREAM_BYTES,
  STREAM_KEY_BYTES,
  STREAM_SLOTS,
  VTEP_KEY_BYTES,
  VTEP_VALUE_BYTES,
} from "../../src/overlay/fast-path-maps.ts";
import { receiveProgram, sendProgram } from "../../src/overlay/fast-path.ts";
import { decodeEthernetHeader, encodeEthernetHeader, ETHER_TYPE } from "../../src/wire/ethernet.ts";
import { decodeIpv4Header, encodeIpv4Header, IP_PROTOCOL, plainIpv4 } from "../../src/wire/ipv4.ts";
import { decodeUdp } from "../../src/wire/udp.ts";
import { decodeVxlanHeader } from "../../src/wire/vxlan.ts";

const VNI = vni(4097);
const PORT = 4789;
const HERE = parseIp("192.0.2.1");
const THERE = parseIp("192.0.2.2");
const STRANGER = parseIp("192.0.2.99");
const OURS = parseMac("02:42:0a:00:09:02");
const THEIRS = parseMac("02:42:0a:00:09:03");
const UNKNOWN = parseMac("02:42:0a:00:09:63");
const NEXT = 0xffffffff | 0;
const REDIRECT = 7;
const OUTER_BYTES = 14 + 20 + 8 + 8;
const NETWORK_MTU = 1450;

test("a frame to a known endpoint leaves with the headers that the kernel's VXLAN would give it", () => {
  using programs = new Programs();
  for (const ecn of [0, 1, 2]) {
    const inner = frame(THEIRS, OURS, { bytes: 100, ecn });
    const { verdict, frame: sent } = programs.send.run(inner, OUTER_BYTES);
    assert.equal(verdict, REDIRECT);
    const input: ByteReader = new ByteReader(sent, "sent");
    decodeEthernetHeader(input); // MAC addresses are the neighbor's task
    const ip = decodeIpv4Header(input); // throws at a wrong checksum
    assert.deepEqual([ip.source, ip.destination, ip.ttl], [HERE, THERE, 64]);
    assert.equal(sent[15], ecn, "ECN of the inner packet");
    const udp = decodeUdp(input);
    assert.equal(udp.destinationPort, PORT);
    assert.ok(udp.sourcePort >= 32_768 && udp.sourcePort < 61_000);
    const body: ByteReader = new ByteReader(udp.payload, "body");
    assert.equal(decodeVxlanHeader(body).vni, VNI);
    assert.deepEqual(Buffer.from(udp.payload.subarray(body.offset)), Buffer.from(inner));
  }
});

test("each flow keeps its source port, and flows differ", () => {
  using programs = new Programs();
  const portOf = (port: number): number => {
    const { frame: sent } = programs.send.run(frame(THEIRS, OURS, { bytes: 100, port }), OUTER_BYTES);
    return Buffer.from(sent).readUInt16BE(34);
  };
  assert.equal(portOf(1), portOf(1));
  assert.ok(new Set(Array.from({ length: 32 }, (_, port) => portOf(port + 1))).size > 16);
});

test("what is not known, does not fit or needs the kernel's care is left to the device", () => {
  using programs = new Programs();
  const passes = (what: string, bytes: Uint8Array): void => {
    const { verdict, frame: left } = programs.send.run(bytes, OUTER_BYTES);
    assert.equal(verdict, NEXT, what);
    assert.deepEqual(Buffer.from(left), Buffer.from(bytes), `${what}: untouched`);
  };
  passes("an unknown MAC", frame(UNKNOWN, OURS, { bytes: 100 }));
  passes("a broadcast", frame(parseMac("ff:ff:ff:ff:ff:ff"), OURS, { bytes: 100 }));
  passes("ARP", frame(THEIRS, OURS, { bytes: 100, type: ETHER_TYPE.arp }));
  passes("a packet that has met congestion", frame(THEIRS, OURS, { bytes: 100, ecn: 3 }));
  passes("one byte too many", frame(THEIRS, OURS, { bytes: NETWORK_MTU + 1 }));
  assert.equal(programs.send.run(frame(THEIRS, OURS, { bytes: NETWORK_MTU }), OUTER_BYTES).verdict, REDIRECT);
  programs.vteps.delete([encodeVtepKey(THERE)]);
  passes("a VTEP without a way", frame(THEIRS, OURS, { bytes: 100 }));
});

test("what was sent comes out again as it went in", () => {
  using programs = new Programs();
  for (const type of [ETHER_TYPE.ipv4, ETHER_TYPE.ipv6]) {
    const inner = frame(OURS, THEIRS, { bytes: 200, type });
    const { verdict, frame: got } = programs.receive.run(outer(inner), 0);
    assert.equal(verdict, REDIRECT);
    assert.deepEqual(Buffer.from(got), Buffer.from(inner));
  }
});

test("strangers, other networks and whatever is odd are left to the stack", () => {
  using programs = new Programs();
  const inner = frame(OURS, THEIRS, { bytes: 200 });
  const passes = (what: string, bytes: Uint8Array): void => {
    const { verdict, frame: left } = programs.receive.run(bytes, 0);
    assert.equal(verdict, NEXT, what);
    assert.deepEqual(Buffer.from(left), Buffer.from(bytes), `${what}: untouched`);
  };
  passes("a stranger", outer(inner, { source: STRANGER }));
  passes("another VNI", outer(inner, { vni: 4098 }));
  passes("to another address", outer(inner, { destination: STRANGER }));
  passes("another port", outer(inner, { port: PORT + 1 }));
  passes("a sender that is elsewhere", outer(frame(OURS, UNKNOWN, { bytes: 200 })));
  passes("congestion on the way", outer(inner, { tos: 3 }));
  passes("a fragment", outer(inner, { fragment: 0x2000 }));
  passes("a later fragment", outer(inner, { fragment: 100 }));
  passes("options in the outer header", outer(inner, { version: 0x46 }));
  passes("TCP", outer(inner, { protocol: IP_PROTOCOL.tcp }));
  passes("another flag", outer(inner, { flags: 0x0c }));
  passes("ARP inside", outer(frame(OURS, THEIRS, { bytes: 200, type: ETHER_TYPE.arp })));
  passes("a frame that ends too soon", outer(inner).subarray(0, 80));
  programs.vteps.delete([encodeVtepKey(THERE)]);
  passes("a VTEP that is spoken with over the slow path", outer(inner));
});

test("a one-way stream is left to the engine, which moves many packets as one; what is answered is none", () => {
  using programs = new Programs({ streams: true });
  const sent = (port: number): number =>
    programs.send.run(frame(THEIRS, OURS, { bytes: 100, port }), OUTER_BYTES).verdict;
  const verdicts = Array.from({ length: 100 }, () => sent(7));
  assert.deepEqual(new Set(verdicts.slice(0, 64)), new Set([REDIRECT]));
  assert.deepEqual(new Set(verdicts.slice(64)), new Set([NEXT]));
  // Another flow, with an answer now and then.
  for (let packet = 0; packet < 300; packet++) {
    assert.equal(sent(8), REDIRECT);
    if (packet % 50 === 0) {
      const answer = frame(OURS, THEIRS, { bytes: 100, port: 8 });
      assert.equal(programs.receive.run(outer(answer), 0).verdict, REDIRECT);
    }
  }
  assert.equal(sent(7), NEXT, "the stream has not rested");
});

/** The programs of a node that is `HERE`, and knows one endpoint `THERE`. */
class Programs implements Disposable {
  readonly endpoints = new BpfMap("hash", ENDPOINT_KEY_BYTES, ENDPOINT_VALUE_BYTES, 16);
  readonly vteps = new BpfMap("hash", VTEP_KEY_BYTES, VTEP_VALUE_BYTES, 16);
  readonly send: BpfProgram;
  readonly receive: BpfProgram;

  readonly streams = new BpfMap("array", STREAM_KEY_BYTES, STREAM_BYTES, STREAM_SLOTS);

  constructor({ streams = false } = {}) {
    const maps = {
      endpoints: this.endpoints.fd,
      vteps: this.vteps.fd,
      streams: streams ? this.streams.fd : undefined,
    };
    this.send = new BpfProgram(
      "send",
      sendProgram({ vni: VNI, mtu: NETWORK_MTU, port: PORT, fastIfindex: 1 }, maps),
    );
    this.receive = new BpfProgram("receive", receiveProgram(PORT, maps));
    const there = encodeEndpoint({ vtep: THERE, source: HERE, hostIfindex: 1 });
    this.endpoints.set([[encodeEndpointKey(VNI, THEIRS), there]]);
    this.vteps.set([[encodeVtepKey(THERE), encodeVtep({ ifindex: 1, mtu: NETWORK_MTU + 50 })]]);
  }

  [Symbol.dispose](): void {
    for (const one of [this.send, this.receive, this.endpoints, this.vteps, this.streams])
      one[Symbol.dispose]();
  }
}

interface Inner {
  /** Of the packet in the frame. */
  readonly bytes: number;
  readonly type?: number;
  readonly ecn?: number;
  readonly port?: number;
}

function frame(
  to: MacAddr,
  from: MacAddr,
  { bytes, type = ETHER_TYPE.ipv4, ecn = 0, port = 7 }: Inner,
): Uint8Array {
  const out = new ByteWriter();
  encodeEthernetHeader({ destination: to, source: from, etherType: type }, out);
  const packet = new Uint8Array(bytes).map((_, at) => at);
  if (type === ETHER_TYPE.ipv4) {
    const header = new ByteWriter();
    const [source, destination] = [parseIp("10.0.9.2"), parseIp("10.0.9.3")];
    encodeIpv4Header(plainIpv4(source, destination, IP_PROTOCOL.udp, bytes - 20), header);
    packet.set(header.finish(), 0);
    packet[1] = ecn;
    packet.set([port >> 8, port & 0xff, 0, 9, (bytes - 20) >> 8, (bytes - 20) & 0xff, 0, 0], 20);
  } else if (type === ETHER_TYPE.ipv6) packet.set([0x60, ecn << 4], 0);
  return Buffer.concat([out.finish(), packet]);
}

interface Outer {
  readonly source?: IpAddr;
  readonly destination?: IpAddr;
  readonly port?: number;
  readonly vni?: number;
  readonly tos?: number;
  readonly fragment?: number;
  readonly version?: number;
  readonly protocol?: number;
  readonly flags?: number;
}

/** As it comes from the wire. The test's device is loopback, whose MAC is zero. */
function outer(inner: Uint8Array, how: Outer = {}): Uint8Array {
  const { source = THERE, destination = HERE } = how;
  const out = new ByteWriter();
  out.zeros(12).u16(ETHER_TYPE.ipv4);
  out
    .u8(how.version ?? 0x45)
    .u8(how.tos ?? 0)
    .u16(20 + 16 + inner.length)
    .u16(1);
  out
    .u16(how.fragment ?? 0)
    .u8(64)
    .u8(how.protocol ?? IP_PROTOCOL.udp)
    .u16(0);
  for (const address of [source, destination]) for (const byte of address.split(".")) out.u8(Number(byte));
  out
    .u16(50_000)
    .u16(how.port ?? PORT)
    .u16(16 + inner.length)
    .u16(0);
  out
    .u8(how.flags ?? 8)
    .zeros(3)
    .u32(((how.vni ?? VNI) << 8) >>> 0);
  return Buffer.concat([out.finish(), inner]);
}

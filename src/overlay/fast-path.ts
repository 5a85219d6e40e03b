/**
 * The fast path: BPF programs that put the VXLAN header on and take it off by themselves, for frames whose way is
 * known, and leave all others to the device that has carried them so far. The bytes on the wire are the kernel's, but
 * for the outer UDP checksum, which is zero.
 *
 *     endpoint ─▶ vxlan0 ─ send ─▶ fast0 ══ veth ══ host end ─ pass on ─▶ underlay
 *     endpoint ◀─ vxlan0 ◀─ deliver ─ fast0 ══ veth ══ host end ◀─ receive ─ underlay
 *
 * A program redirects within its own namespace only; the pair of veth devices is the way between the network's and the
 * host's. What is known is two maps: of endpoints, where they are, and of VTEPs, how they are reached just now. A VTEP
 * that is not in the second one is spoken with over the slow path, in both directions.
 */
import type { Vni } from "../base/id.ts";
import { BPF_HELPER, BpfWriter, type Operand, type Register, SKB } from "../wire/bpf.ts";
import { type FastMaps, networkOrder, STREAM_SLOTS, TTL, UDP } from "./fast-path-maps.ts";

const value = (number: number): Operand => ({ value: number });

// As they stand in memory, read by a little-endian machine.
const ETHERTYPE_IPV4 = 0x0008;
const ETHERTYPE_IPV6 = 0xdd86;
const ETHERNET_BYTES = 14;
const IPV4_BYTES = 20;
const OVERHEAD = 50; // IPv4, UDP, VXLAN, inner Ethernet
const HEADERS = ETHERNET_BYTES + OVERHEAD;
const VXLAN_FLAGS_BYTE = 0x08;
const ECN_CE = 3;
/** Where outer headers are put together in the frame: the inner Ethernet header falls on 8 bytes. */
const STACK_HEADERS = -98;
const STACK_INNER = STACK_HEADERS + HEADERS - ETHERNET_BYTES;
const STACK_IDENTIFICATION = STACK_HEADERS + 18;
const STACK_KEY = -16;
const STACK_NOW = -104;
/** Knuth's multiplier: spreads what differs in few bits. */
const HASH = 0x61c88647;
/** The default of net.ipv4.ip_local_port_range, from which the kernel's VXLAN takes source ports. */
const FIRST_SOURCE_PORT = 32_768;
const SOURCE_PORTS = 28_232;
/** What the network's end tells the host's in place of MAC addresses: this, and the underlay's device. */
const TOKEN = 0x6e617466;
/** Frames that the program of the underlay has sent into the network. */
const MARK = 0x6e617466;

/** What a program may look at of the inner frame: Ethernet, IPv4, and ports. */
const HEADERS_READ = ETHERNET_BYTES + IPV4_BYTES + 8;

const ADJUST_ROOM_MAC = 1;
const ENCAPSULATE = (BigInt(ETHERNET_BYTES) << 56n) | 0x1n | 0x2n | 0x10n | 0x20n | 0x40n; // fixed GSO, IPv4, UDP, checksum kept, Ethernet inside
const FIXED_GSO = 0x1;
const DECAPSULATE_IPV4 = FIXED_GSO | 0x80;
const DECAPSULATE_IPV6 = FIXED_GSO | 0x100;
const INVALIDATE_HASH = 2;
const REDIRECT_INGRESS = 1;
const TCX_NEXT = -1;
const TCX_DROP = 2;

/** So many packets without one in return are a stream, until there is none for so long. */
const STREAM_PACKETS = 64;
const STREAM_REST_MS = 200; // of 2²⁰ ns

/** At the egress of a network's device. */
export function sendProgram(
  network: { readonly vni: Vni; readonly mtu: number; readonly port: number; readonly fastIfindex: number },
  maps: FastMaps,
): Uint8Array {
  const out = begin();
  out.load(4, 2, 6, SKB.vlanPresent);
  out.jumpIf(2, "≠", value(0), "next");
  loadPacket(out, HEADERS_READ);
  // ECN of the inner packet, which the outer one carries as well; in r9 until the headers are written.
  out.load(4, 2, 6, SKB.protocol);
  out.jumpIf(2, "=", value(ETHERTYPE_IPV4), "ipv4");
  out.jumpIf(2, "≠", value(ETHERTYPE_IPV6), "next");
  out.load(1, 9, 7, 15);
  out.compute(9, ">>", value(4));
  out.jump("ecn");
  out.label("ipv4");
  out.load(1, 9, 7, 15);
  out.label("ecn");
  out.compute(9, "&", value(ECN_CE));
  out.jumpIf(9, "=", value(ECN_CE), "next");
  out.store(4, 10, -20, 9);
  out.store(4, 10, STACK_KEY, value(network.vni));
  copyMac(out, 0);
  copyEthernet(out, 0);
  lookUp(out, maps.endpoints, STACK_KEY);
  out.move(9, 0);
  out.load(4, 1, 9, 0);
  out.store(4, 10, -24, 1);
  lookUp(out, maps.vteps, -24);
  // The inner frame is one byte string in a packet of 36 bytes more; a superframe's pieces are as large as the network's MTU.
  out.move(8, 0);
  out.load(4, 2, 8, 4);
  out.load(4, 1, 6, SKB.gsoSize);
  out.jumpIf(1, "≠", value(0), "superframe");
  out.load(4, 1, 6, SKB.length);
  out.compute(1, "+", value(OVERHEAD - ETHERNET_BYTES));
  out.jump("fits");
  out.label("superframe");
  out.move(1, value(network.mtu + OVERHEAD));
  out.label("fits");
  out.jumpIf(1, ">", 2, "next");
  if (maps.streams !== undefined) leaveStreams(out, maps.streams);
  out.load(4, 1, 8, 0);
  out.store(4, 10, -28, 1);
  out.move(1, 6);
  out.call(BPF_HELPER.hashRecalculate);
  out.moveLower(8, 0);
  // Whoever cuts the packet on its way, DF not being set, relies on it.
  out.call(BPF_HELPER.random);
  out.store(2, 10, STACK_IDENTIFICATION, 0);
  out.move(1, 6);
  out.move(2, value(OVERHEAD));
  out.move(3, value(ADJUST_ROOM_MAC));
  out.moveWide(4, ENCAPSULATE);
  out.move(5, value(0));
  out.call(BPF_HELPER.adjustRoom);
  out.jumpIf(0, "≠", value(0), "next");
  writeHeaders(out, network);
  out.move(1, 6);
  out.move(2, value(0));
  out.move(3, 10);
  out.compute(3, "+", value(STACK_HEADERS));
  out.move(4, value(HEADERS));
  out.move(5, value(0));
  out.call(BPF_HELPER.storeBytes);
  out.jumpIf(0, "≠", value(0), "drop");
  out.move(1, value(network.fastIfindex));
  out.move(2, value(0));
  out.call(BPF_HELPER.redirect);
  out.exit();
  return end(out);
}

/** At the ingress of the pair's end in the host. Everything that is not `sendProgram`'s is dropped. */
export function passOnProgram(): Uint8Array {
  const out = begin();
  loadPacket(out, HEADERS, "drop");
  out.load(4, 1, 7, 0);
  out.jumpIf(1, "≠", value(TOKEN), "drop");
  out.load(2, 1, 7, 6); // in two halves, for there it is not aligned
  out.load(2, 2, 7, 8);
  out.compute(2, "<<", value(16));
  out.compute(1, "|", 2);
  for (const register of [2, 3, 4] as const) out.move(register, value(0));
  out.call(BPF_HELPER.redirectNeighbor);
  out.exit();
  return endDropping(out);
}

/** At the ingress of an underlay device. */
export function receiveProgram(port: number, maps: FastMaps): Uint8Array {
  const out = begin();
  for (const [field, wanted] of [
    [SKB.protocol, ETHERTYPE_IPV4],
    [SKB.packetType, 0],
    [SKB.vlanPresent, 0],
  ] as const) {
    out.load(4, 2, 6, field);
    out.jumpIf(2, "≠", value(wanted), "next");
  }
  loadPacket(out, OVERHEAD + HEADERS_READ);
  expect(out, 1, 14, 0x45);
  expect(out, 1, 23, UDP);
  out.load(2, 1, 7, 20);
  out.jumpIf(1, "&", value(networkOrder(0x3fff)), "next"); // a fragment
  expect(out, 2, 36, networkOrder(port));
  expect(out, 4, 42, VXLAN_FLAGS_BYTE);
  expect(out, 1, 49, 0);
  // Congestion was met on the way: the kernel knows how to tell the inner packet.
  out.load(1, 1, 7, 15);
  out.compute(1, "&", value(ECN_CE));
  out.jumpIf(1, "=", value(ECN_CE), "next");
  out.load(4, 1, 7, 26);
  out.store(4, 10, -24, 1);
  lookUp(out, maps.vteps, -24);
  out.load(4, 1, 7, 46);
  out.toNetworkOrder(1, 32);
  out.compute(1, ">>", value(8));
  out.store(4, 10, STACK_KEY, 1);
  copyMac(out, OVERHEAD + 6);
  lookUp(out, maps.endpoints, STACK_KEY);
  out.move(9, 0);
  // From the VTEP where the sender is, and to us.
  for (const [at, field] of [
    [26, 0],
    [30, 4],
  ] as const) {
    out.load(4, 1, 7, at);
    out.load(4, 2, 9, field);
    out.jumpIf(1, "≠", 2, "next");
  }
  out.load(2, 1, 7, HEADERS - 2);
  out.load(2, 2, 7, HEADERS + 2); // IPv4's total length
  out.move(3, value(0));
  out.move(8, value(DECAPSULATE_IPV4));
  out.jumpIf(1, "=", value(ETHERTYPE_IPV4), "known");
  out.jumpIf(1, "≠", value(ETHERTYPE_IPV6), "next");
  out.load(2, 2, 7, HEADERS + 4); // IPv6's length of what follows the header
  out.move(3, value(40));
  out.move(8, value(DECAPSULATE_IPV6));
  out.label("known");
  // Datagrams that the receiving device has put together (for a socket with UDP_GRO) are many frames, not one.
  out.load(4, 1, 6, SKB.gsoSize);
  out.jumpIf(1, "=", value(0), "single");
  out.toNetworkOrder(2, 16);
  out.compute(2, "+", 3);
  out.compute(2, "+", value(HEADERS));
  out.load(4, 1, 6, SKB.length);
  out.jumpIf(1, "≠", 2, "next");
  out.label("single");
  if (maps.streams !== undefined) noteReply(out, maps.streams);
  copyEthernet(out, OVERHEAD);
  out.move(1, 6);
  out.move(2, value(-OVERHEAD));
  out.move(3, value(ADJUST_ROOM_MAC));
  out.move(4, 8);
  out.move(5, value(0));
  out.call(BPF_HELPER.adjustRoom);
  out.jumpIf(0, "≠", value(0), "next");
  out.move(1, 6);
  out.move(2, value(0));
  out.move(3, 10);
  out.compute(3, "+", value(STACK_INNER));
  out.move(4, value(ETHERNET_BYTES));
  out.move(5, value(INVALIDATE_HASH));
  out.call(BPF_HELPER.storeBytes);
  out.jumpIf(0, "≠", value(0), "drop");
  out.move(1, value(MARK));
  out.store(4, 6, SKB.mark, 1);
  out.load(4, 1, 9, 8);
  out.move(2, value(0));
  out.call(BPF_HELPER.redirectPeer);
  out.exit();
  return end(out);
}

/** At the ingress of the pair's end in the network: what a program on the host's end has not sent is dropped. */
export function deliverProgram(deviceIfindex: number): Uint8Array {
  const out = begin();
  out.load(4, 1, 6, SKB.mark);
  out.jumpIf(1, "≠", value(MARK), "drop");
  out.move(1, value(0));
  out.store(4, 6, SKB.mark, 1);
  out.move(1, value(deviceIfindex));
  out.move(2, value(REDIRECT_INGRESS));
  out.call(BPF_HELPER.redirect);
  out.exit();
  return endDropping(out);
}

/** r6 is the packet from now on. */
function begin(): BpfWriter {
  const out = new BpfWriter();
  out.move(6, 1);
  return out;
}

/** Both ends of a program that leaves to the device what it does not know. */
function end(out: BpfWriter): Uint8Array {
  out.label("next");
  out.move(0, value(TCX_NEXT));
  out.exit();
  return endDropping(out);
}

function endDropping(out: BpfWriter): Uint8Array {
  out.label("drop");
  out.move(0, value(TCX_DROP));
  out.exit();
  return out.finish();
}

/** r7 is where the frame begins, of which so many bytes can be read, or else it jumps. */
function loadPacket(out: BpfWriter, bytes: number, otherwise = "next"): void {
  out.load(4, 7, 6, SKB.data);
  out.load(4, 8, 6, SKB.dataEnd);
  out.move(1, 7);
  out.compute(1, "+", value(bytes));
  out.jumpIf(1, ">", 8, otherwise);
}

function expect(out: BpfWriter, width: 1 | 2 | 4, offset: number, wanted: number): void {
  out.load(width, 1, 7, offset);
  out.jumpIf(1, "≠", value(wanted), "next");
}

/** A flow that has sent much and heard nothing is left to the device, until it has rested. */
function leaveStreams(out: BpfWriter, streams: number): void {
  out.call(BPF_HELPER.coarseTime);
  out.compute(0, ">>", value(20));
  out.store(4, 10, STACK_NOW, 0);
  lookUpFlow(out, streams, 0);
  out.load(4, 1, 10, STACK_NOW);
  out.load(4, 2, 0, 4);
  out.store(4, 0, 4, 1);
  out.load(4, 3, 0, 0);
  out.compute(1, "−", 2);
  out.moveLower(1, 1);
  out.jumpIf(1, "≥", value(STREAM_REST_MS), "rested");
  out.jumpIf(3, "≥", value(STREAM_PACKETS), "next");
  out.compute(3, "+", value(1));
  out.jump("counted");
  out.label("rested");
  out.move(3, value(1));
  out.label("counted");
  out.store(4, 0, 0, 3);
  out.label("no-stream");
}

/** What is answered is no stream. */
function noteReply(out: BpfWriter, streams: number): void {
  lookUpFlow(out, streams, OVERHEAD);
  out.load(4, 1, 0, 0);
  out.jumpIf(1, "≥", value(STREAM_PACKETS), "no-stream");
  out.store(4, 0, 0, value(0));
  out.label("no-stream");
}

/** r0 is the slot of the frame's flow, the same in both directions: packets, and when the last one was sent. */
function lookUpFlow(out: BpfWriter, streams: number, frame: number): void {
  const ip = frame + ETHERNET_BYTES;
  out.load(2, 1, 7, ip - 2);
  out.jumpIf(1, "≠", value(ETHERTYPE_IPV4), "no-stream");
  out.load(1, 1, 7, ip);
  out.jumpIf(1, "≠", value(0x45), "no-stream");
  out.load(1, 1, 7, ip + 9);
  out.jumpIf(1, "≠", value(UDP), "no-stream");
  out.load(2, 1, 7, ip + 6);
  out.jumpIf(1, "&", value(networkOrder(0x3fff)), "no-stream");
  out.load(4, 1, 7, ip + 12);
  out.load(4, 2, 7, ip + 16);
  out.compute(1, "^", 2);
  out.load(2, 2, 7, ip + 20);
  out.load(2, 3, 7, ip + 22);
  out.compute(2, "^", 3);
  out.compute(2, "<<", value(8));
  out.compute(1, "^", 2);
  out.compute(1, "×", value(HASH));
  out.compute(1, ">>", value(16));
  out.compute(1, "&", value(STREAM_SLOTS - 1));
  out.store(4, 10, STACK_KEY, 1);
  lookUp(out, streams, STACK_KEY);
}

/** Behind the VNI of the key. */
function copyMac(out: BpfWriter, offset: number): void {
  out.load(4, 1, 7, offset);
  out.store(4, 10, STACK_KEY + 4, 1);
  out.load(2, 1, 7, offset + 4);
  out.store(2, 10, STACK_KEY + 8, 1);
  out.store(2, 10, STACK_KEY + 10, value(0));
}

/** The inner Ethernet header, to where it belongs behind the outer ones. */
function copyEthernet(out: BpfWriter, offset: number): void {
  out.load(8, 1, 7, offset);
  out.store(8, 10, STACK_INNER, 1);
  out.load(4, 1, 7, offset + 8);
  out.store(4, 10, STACK_INNER + 8, 1);
  out.load(2, 1, 7, offset + 12);
  out.store(2, 10, STACK_INNER + 12, 1);
}

/** The value's place is in r0. */
function lookUp(out: BpfWriter, mapFd: number, key: number): void {
  out.moveMap(1, mapFd);
  out.move(2, 10);
  out.compute(2, "+", value(key));
  out.call(BPF_HELPER.mapLookup);
  out.jumpIf(0, "=", value(0), "next");
}

/** r8 is the flow's hash, r9 the endpoint's entry; ECN and device are on the stack. */
function writeHeaders(out: BpfWriter, network: { readonly vni: Vni; readonly port: number }): void {
  const at = (offset: number): number => STACK_HEADERS + offset;
  out.load(4, 7, 6, SKB.length);
  // Where MAC addresses will be: what the other end of the pair must know.
  const halves = (offset: number, register: Register): void => {
    out.store(2, 10, at(offset), register);
    out.compute(register, ">>", value(16));
    out.store(2, 10, at(offset + 2), register);
  };
  out.move(1, value(TOKEN));
  halves(0, 1);
  out.store(2, 10, at(4), value(0));
  out.load(4, 1, 10, -28);
  halves(6, 1);
  out.store(2, 10, at(10), value(0));
  out.store(2, 10, at(12), value(ETHERTYPE_IPV4));
  // IPv4: version and TOS, length, identification and fragment 0, TTL, protocol, checksum, addresses.
  out.load(4, 2, 10, -20);
  out.compute(2, "<<", value(8));
  out.move(3, 2);
  out.compute(3, "|", value(0x45));
  out.store(2, 10, at(14), 3);
  out.move(1, 7);
  out.compute(1, "+", value(-ETHERNET_BYTES));
  out.toNetworkOrder(1, 16);
  out.store(2, 10, at(16), 1);
  out.load(2, 3, 10, STACK_IDENTIFICATION);
  out.compute(1, "+", 3);
  out.store(2, 10, at(20), value(0));
  out.store(2, 10, at(22), value(networkOrder((TTL << 8) | UDP)));
  out.compute(1, "+", 2);
  out.load(4, 2, 9, 12);
  out.compute(1, "+", 2);
  for (let fold = 0; fold < 2; fold++) {
    out.move(2, 1);
    out.compute(2, ">>", value(16));
    out.compute(1, "&", value(0xffff));
    out.compute(1, "+", 2);
  }
  out.compute(1, "^", value(0xffff));
  out.store(2, 10, at(24), 1);
  out.load(4, 1, 9, 4);
  out.store(4, 10, at(26), 1);
  out.load(4, 1, 9, 0);
  out.store(4, 10, at(30), 1);
  // UDP: source port by the flow's hash, as the kernel picks it.
  out.compute(8, "×", value(SOURCE_PORTS));
  out.compute(8, ">>", value(32));
  out.compute(8, "+", value(FIRST_SOURCE_PORT));
  out.toNetworkOrder(8, 16);
  out.store(2, 10, at(34), 8);
  out.store(2, 10, at(36), value(networkOrder(network.port)));
  out.compute(7, "+", value(-(ETHERNET_BYTES + IPV4_BYTES)));
  out.toNetworkOrder(7, 16);
  out.store(2, 10, at(38), 7);
  out.store(2, 10, at(40), value(0));
  out.store(4, 10, at(42), value(VXLAN_FLAGS_BYTE));
  out.move(1, value(network.vni << 8));
  out.toNetworkOrder(1, 32);
  out.store(4, 10, at(46), 1);
}

import assert from "node:assert/strict";
import { test } from "node:test";
import { parseChecksumErrors } from "../../src/agent/checksum-watch.ts";

test("wrong checksums of UDP and TCP are added up, wherever the kernel puts the column", () => {
  const text = [
    "Ip: Forwarding DefaultTTL InReceives",
    "Ip: 1 64 1000",
    "Icmp: InMsgs InErrors InCsumErrors",
    "Icmp: 5 0 9",
    "Tcp: RtoAlgorithm InErrs OutRsts InCsumErrors",
    "Tcp: 1 0 7 3",
    "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti",
    "Udp: 59 1 4 61 0 0 4 0",
    "UdpLite: InDatagrams InCsumErrors",
    "UdpLite: 0 2",
    "",
  ].join("\n");
  assert.equal(parseChecksumErrors(text), 7);
  assert.equal(parseChecksumErrors(""), 0);
});

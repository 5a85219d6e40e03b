/**
 * node hostile.js ADDRESS UDP-PORT COUNT SEED
 *
 * Sends COUNT datagrams of up to 1400 bytes to a UDP port: noise, and noise that begins like what is expected there
 * (memberlist message types, a compound with wrong lengths, an encrypted packet, a VXLAN header). Then does the
 * same over TCP, cutting connections anywhere. The same seed sends the same bytes.
 */

import { createSocket } from "node:dgram";
import { createConnection } from "node:net";
import { pick, randomBytes, randomInt, seededRandom } from "../../src/base/random.ts";

const MAX_BYTES = 1400;
const STREAM_BATCHES = 5;
const STREAMS_A_BATCH = 10;
const [address = "127.0.0.1", port = "7946", count = "1000", seed = "1"] = process.argv.slice(2);
/** First bytes that lead a decoder further in. */
const BEGINNINGS: readonly (readonly number[])[] = [
  [],
  ...Array.from({ length: 15 }, (_, type) => [type]),
  [7, 255, 255, 255],
  [7, 3, 0, 1, 0, 0, 255, 255],
  [9, 0x82, 0xa4, 0x41, 0x6c, 0x67, 0x6f, 0x00, 0xa3, 0x42, 0x75, 0x66, 0xda, 0xff, 0xff],
  [6, 0x83, 0xdf, 0xff, 0xff, 0xff, 0xff],
  [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  [244, 255, 97, 98],
  [10, 0xff, 0xff, 0xff, 0xff],
  [0x08, 0, 0, 0, 0, 0x10, 0x01, 0],
];

const random = seededRandom(Number(seed));
const socket = createSocket("udp4");
await new Promise<void>((resolve) => socket.connect(Number(port), address, resolve));
socket.on("error", () => {}); // refusals are fine
for (let sent = 0; sent < Number(count); sent++) {
  await new Promise<void>((resolve) => socket.send(packet(), () => resolve()));
}
socket.close();
for (let batch = 0; batch < STREAM_BATCHES; batch++) {
  await Promise.all(Array.from({ length: STREAMS_A_BATCH }, stream));
}

function packet(): Buffer {
  const beginning = pick(random, BEGINNINGS) ?? [];
  return Buffer.concat([Buffer.from(beginning), randomBytes(random, randomInt(random, MAX_BYTES - 20))]);
}

/** A connection with one packet's worth of noise, ended or cut; a refusal is fine. */
function stream(): Promise<void> {
  return new Promise((resolve) => {
    const connection = createConnection({ host: address, port: Number(port) });
    connection.on("error", () => {});
    connection.on("close", () => resolve());
    connection.setTimeout(2_000, () => connection.destroy());
    connection.on("data", () => {});
    connection.write(packet());
    if (randomInt(random, 2) === 0) connection.end();
    else connection.resetAndDestroy();
  });
}

/**
 * node dns-server.js ADDRESS [LABEL]
 *
 * A name server of the outside, UDP and TCP on port 53: TXT of any name answers LABEL; A of `many.*` answers 60
 * addresses (cut over UDP when they do not fit), of `missing.*` NXDOMAIN, of `broken.*` SERVFAIL, of anything else 192.0.2.1. Prints
 * every question: `NAME TYPE`.
 */

import { createSocket } from "node:dgram";
import { createServer } from "node:net";
import { decode, encode, type Answer } from "dns-packet";

const [address = "127.0.0.1", label = "outside"] = process.argv.slice(2);

function answer(bytes: Buffer, limit: number): Buffer {
  const query = decode(bytes);
  const question = query.questions?.[0];
  const name = question?.name ?? "";
  const type = String(question?.type);
  console.log(`${name} ${type}`);
  const rcode = name.startsWith("broken.") ? 2 : name.startsWith("missing.") ? 3 : 0;
  const answers: Answer[] = [];
  if (rcode === 0 && type === "TXT") answers.push({ type: "TXT", name, ttl: 0, data: label });
  if (rcode === 0 && type === "A") {
    const count = name.startsWith("many.") ? 60 : 1;
    for (let i = 1; i <= count; i++) answers.push({ type: "A", name, ttl: 60, data: `192.0.2.${i}` });
  }
  const packet = { type: "response", id: query.id ?? 0, questions: query.questions ?? [] } as const;
  const whole = encode({ ...packet, flags: 0x0180 | rcode, answers });
  return whole.length <= limit ? whole : encode({ ...packet, flags: 0x0380 | rcode, answers: [] });
}

const udp = createSocket("udp4");
udp.on("message", (bytes, from) => udp.send(answer(bytes, 512), from.port, from.address));
const tcp = createServer((socket) => {
  let buffered = Buffer.alloc(0);
  socket.on("error", () => {});
  socket.on("data", (chunk) => {
    buffered = Buffer.concat([buffered, chunk]);
    while (buffered.length >= 2 && buffered.length >= 2 + buffered.readUInt16BE(0)) {
      const length = buffered.readUInt16BE(0);
      const reply = answer(buffered.subarray(2, 2 + length), 65_535);
      buffered = buffered.subarray(2 + length);
      const prefix = Buffer.alloc(2);
      prefix.writeUInt16BE(reply.length);
      socket.write(Buffer.concat([prefix, reply]));
    }
  });
});
udp.bind(53, address, () => tcp.listen(53, address, () => console.log(`${label} listening on 53`)));

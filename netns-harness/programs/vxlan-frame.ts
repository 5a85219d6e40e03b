/**
 * node vxlan-frame.js ADDRESS PORT VNI MAC COUNT [SOURCE]
 *
 * Sends COUNT VXLAN datagrams with an Ethernet frame for MAC in them, as anybody could who knows a VNI: a UDP packet
 * of 100 bytes from nowhere. SOURCE is the address they come from.
 */

import { createSocket } from "node:dgram";

const [address = "127.0.0.1", port = "4789", vni = "1", mac = "", count = "1", source] =
  process.argv.slice(2);
const header = Buffer.alloc(8);
header[0] = 0x08; // the VNI is valid
header.writeUIntBE(Number(vni), 4, 3);
const frame = Buffer.concat([
  Buffer.from(mac.replaceAll(":", ""), "hex"),
  Buffer.from("026666666666", "hex"),
  Buffer.from("0800", "hex"),
  Buffer.alloc(100, 0x45),
]);
const socket = createSocket(address.includes(":") ? "udp6" : "udp4");
await new Promise<void>((resolve) =>
  socket.bind({ ...(source === undefined ? {} : { address: source }) }, resolve),
);
for (let sent = 0; sent < Number(count); sent++) {
  await new Promise<void>((resolve) =>
    socket.send(Buffer.concat([header, frame]), Number(port), address, () => resolve()),
  );
}
socket.close();

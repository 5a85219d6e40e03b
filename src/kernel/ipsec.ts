/** IPsec policies of a namespace: packets sent round the host's stack would pass them by. */
import { ByteReader } from "../base/bytes.ts";
import { errorCode } from "../base/error.ts";
import { attributeMap } from "../wire/netlink/message.ts";
import { NetlinkSocket } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";

/** include/uapi/linux/xfrm.h */
const XFRM_MSG_GETSPDINFO = 0x25;
const XFRMA_SPD_INFO = 1;

/** Tells whether there are any, for sending or for receiving; `close` it. @throws NetError */
export class IpsecPolicies implements Disposable {
  readonly #socket: NetlinkSocket | undefined;

  constructor(netns: Netns) {
    try {
      this.#socket = new NetlinkSocket("xfrm", netns);
    } catch (error) {
      // A kernel without IPsec.
      if (errorCode(error) !== "EPROTONOSUPPORT") throw error;
    }
  }

  exist(): boolean {
    return (
      this.#socket?.get(
        "count IPsec policies",
        { type: XFRM_MSG_GETSPDINFO, encode: (out) => out.zeros(4) },
        ({ payload }) => {
          const info = attributeMap(payload.subarray(4)).get(XFRMA_SPD_INFO);
          if (info === undefined) return true;
          const counts = new ByteReader(info, "IPsec policy counts"); // in, out, forwarded
          return counts.u32h() + counts.u32h() > 0;
        },
      ) ?? false
    );
  }

  [Symbol.dispose](): void {
    this.#socket?.close();
  }
}

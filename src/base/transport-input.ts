import type { SocketAddr } from "./ip.ts";

/** What the network brings. Streams are named by a number chosen by whoever opened them: odd when accepted here, even when dialled. */
export type TransportInput =
  | { readonly type: "packet"; readonly from: SocketAddr; readonly bytes: Uint8Array }
  | { readonly type: "stream-accepted"; readonly stream: number; readonly from: SocketAddr }
  | { readonly type: "stream-opened"; readonly stream: number }
  | { readonly type: "stream-data"; readonly stream: number; readonly bytes: Uint8Array }
  /** The peer closed its side (no `error`) or the stream failed: `code` is the system's, such as ECONNREFUSED. */
  | {
      readonly type: "stream-closed";
      readonly stream: number;
      readonly error?: { readonly code: string; readonly message: string };
    };

/** Compression envelope: type 9, map {Algo u8, Buf bytes}; Algo 0 is LZW (memberlist util.go, compressPayload). */
import { ByteWriter } from "../../base/bytes.ts";
import { DecodeError } from "../../base/error.ts";
import { lzwCompress, lzwDecompress } from "../lzw.ts";
import {
  fieldCount,
  fieldKey,
  fieldTable,
  MsgpackReader,
  NO_BYTES,
  writeBytes,
  writeMapHeader,
  writeUnsigned,
} from "../msgpack.ts";
import { MESSAGE_TYPE } from "./message.ts";

const LZW = 0;

/** The envelope, whether or not it is shorter than `message`. */
export function encodeCompressed(message: Uint8Array): Uint8Array {
  const buffer = lzwCompress(message);
  const out = new ByteWriter(buffer.length + 18);
  out.u8(MESSAGE_TYPE.compress);
  writeMapHeader(out, 2);
  out.write(KEY.algo);
  writeUnsigned(out, LZW);
  out.write(KEY.buf);
  writeBytes(out, buffer, "raw");
  return out.finish();
}

/**
 * The message inside, at most `maxBytes` long. `bytes` starts with the type byte.
 * @throws DecodeError on another algorithm, bad LZW data or more output than `maxBytes`.
 */
export function decodeCompressed(bytes: Uint8Array, maxBytes: number): Uint8Array {
  const input = new MsgpackReader(bytes, "memberlist compress", 1);
  let algorithm = 0;
  let buffer = NO_BYTES;
  const shape = input.struct();
  for (let i = 0, count = fieldCount(shape); i < count; i++) {
    switch (input.field(shape, i, COMPRESS)) {
      case 0:
        algorithm = input.u8();
        break;
      case 1:
        buffer = input.bytesView();
        break;
      default:
        input.skip();
    }
  }
  if (algorithm !== LZW) throw new DecodeError("memberlist compress", 0, `unknown algorithm ${algorithm}`);
  return lzwDecompress(buffer, maxBytes);
}

const COMPRESS = fieldTable("Algo", "Buf");
const KEY = { algo: fieldKey("Algo"), buf: fieldKey("Buf") } as const;

/** VXLAN header, RFC 7348 §5: flags 8 bits (0x08: VNI valid), reserved 24, VNI 24, reserved 8. */
import type { ByteReader, ByteWriter } from "../base/bytes.ts";
import { vni, type Vni } from "../base/id.ts";

export const VXLAN_HEADER_LENGTH = 8; // bytes

export interface VxlanHeader {
  readonly vni: Vni;
}

export function encodeVxlanHeader(header: VxlanHeader, out: ByteWriter): void {
  out.u8(VNI_VALID);
  out.u24(0);
  out.u24(header.vni);
  out.u8(0);
}

/** Reserved bits are ignored, as the RFC asks. @throws DecodeError without a VNI, or if cut short. */
export function decodeVxlanHeader(input: ByteReader): VxlanHeader {
  if ((input.u8() & VNI_VALID) === 0) input.fail("no VNI");
  input.skip(3);
  const value = vni(input.u24());
  input.skip(1);
  return { vni: value };
}

const VNI_VALID = 0x08;

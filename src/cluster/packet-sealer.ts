import { decodePacket, encodePacket } from "../wire/memberlist/packet.ts";
import { packetOverhead, sealsOutgoing, type Sealing } from "../wire/memberlist/seal.ts";

/** The keys, and packets through them. */
export class PacketSealer {
  readonly #nonce: () => Uint8Array;
  #sealing: Sealing;
  /** The packet made last, where it is not encrypted. */
  #last:
    { readonly parts: readonly Uint8Array[]; readonly crc: boolean; readonly bytes: Uint8Array } | undefined;

  /** `nonce`: 12 bytes never given before. */
  constructor(sealing: Sealing, nonce: () => Uint8Array) {
    this.#sealing = sealing;
    this.#nonce = nonce;
  }

  get sealing(): Sealing {
    return this.#sealing;
  }

  /** Bytes that encryption and label add to each packet. */
  get overhead(): number {
    return packetOverhead(this.#sealing);
  }

  /** From now on. */
  setKeys(keys: readonly Uint8Array[]): void {
    this.#sealing = { ...this.#sealing, keys };
    this.#last = undefined;
  }

  seal(parts: readonly Uint8Array[], crc: boolean): Uint8Array {
    const sealing = this.#sealing;
    if (sealsOutgoing(sealing))
      return encodePacket(parts, { sealing, crc, compress: true, nonce: this.#nonce() });
    // In a storm several get the same packet.
    if (this.#last?.parts !== parts || this.#last.crc !== crc)
      this.#last = { parts, crc, bytes: encodePacket(parts, { sealing, crc, compress: true }) };
    return this.#last.bytes;
  }

  /** @throws DecodeError */
  open(bytes: Uint8Array): ReturnType<typeof decodePacket> {
    return decodePacket(bytes, this.#sealing);
  }

  /** The packet made last is not needed any more. */
  forget(): void {
    this.#last = undefined;
  }
}

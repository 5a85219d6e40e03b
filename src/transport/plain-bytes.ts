/** The same memory without Buffer's own `slice`, which makes a view where Uint8Array's makes a copy. */
export function plainBytes(buffer: Buffer): Uint8Array {
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

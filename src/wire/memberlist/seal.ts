/**
 * AES-GCM envelope (memberlist security.go): version 1 byte, nonce 12, ciphertext, tag 16.
 * Version 0 pads the plaintext to 16 bytes (PKCS#7, a full block if aligned), version 1 does not. The version
 * byte is not authenticated; the associated data is the label, on streams the frame header and the label.
 */
import {
  createCipheriv,
  createDecipheriv,
  createSecretKey,
  type CipherGCMTypes,
  type KeyObject,
} from "node:crypto";
import { assert } from "../../base/assert.ts";
import { DecodeError } from "../../base/error.ts";
import { labelOverhead } from "./label.ts";

/** How one cluster protects its traffic. */
export interface Sealing {
  /** AES keys of 16, 24 or 32 bytes. The first seals, all open. None: no encryption. */
  readonly keys: readonly Uint8Array[];
  /** Cluster label, empty for none, at most 255 bytes of UTF-8. */
  readonly label: string;
  /** Whether plaintext is refused while there are keys. Off only while encryption is being introduced. */
  readonly verifyIncoming: boolean;
  /** Whether to encrypt what is sent while there are keys. */
  readonly verifyOutgoing: boolean;
  /** 1, or 0 towards members that speak protocol version 1. */
  readonly encryptionVersion: 0 | 1;
}

/** No keys, no label. */
export const UNSEALED: Sealing = {
  keys: [],
  label: "",
  verifyIncoming: true,
  verifyOutgoing: true,
  encryptionVersion: 1,
};

/** Bytes that are sound as far as can be seen, and sealed otherwise than ours. */
export class KeyMismatch extends DecodeError {
  readonly mismatch: "other-key" | "no-key" | "not-sealed";

  constructor(mismatch: KeyMismatch["mismatch"], format: string, offset: number, detail: string) {
    super(format, offset, detail);
    this.mismatch = mismatch;
  }
}

export const NONCE_LENGTH = 12; // bytes
export const TAG_LENGTH = 16; // bytes
const VERSION_LENGTH = 1; // byte
const BLOCK_LENGTH = 16; // bytes, of version 0's padding

/** Whether what we send is encrypted, and therefore needs a nonce. */
export function sealsOutgoing(sealing: Sealing): boolean {
  return sealing.keys.length > 0 && sealing.verifyOutgoing;
}

/** Bytes to leave free in a packet for encryption and label; of padding the worst case, as Go reckons. */
export function packetOverhead(sealing: Sealing): number {
  const encryption = sealsOutgoing(sealing) ? sealOverhead(sealing.encryptionVersion) : 0;
  return encryption + labelOverhead(sealing.label);
}

/** Version, nonce, tag and at most a block of padding: 45 bytes for version 0, 29 for version 1. */
export function sealOverhead(version: 0 | 1): number {
  return VERSION_LENGTH + NONCE_LENGTH + TAG_LENGTH + (version === 0 ? BLOCK_LENGTH : 0);
}

/** Exact length of `seal()` for a plaintext of `plainLength` bytes. */
export function sealedLength(plainLength: number, version: 0 | 1): number {
  const padding = version === 0 ? BLOCK_LENGTH - (plainLength % BLOCK_LENGTH) : 0;
  return VERSION_LENGTH + NONCE_LENGTH + plainLength + padding + TAG_LENGTH;
}

/** Encrypts with the first key and writes the envelope into `out` at `at`. `nonce`: 12 bytes, never used twice. */
export function sealInto(
  out: Uint8Array,
  at: number,
  plain: Uint8Array,
  sealing: Sealing,
  nonce: Uint8Array | undefined,
  associated: Uint8Array,
): void {
  assert(nonce?.length === NONCE_LENGTH, "sealing needs a nonce of 12 bytes");
  const key = sealing.keys[0];
  assert(key !== undefined, "sealing needs a key");
  const secret = secretOf(key);
  const cipher = createCipheriv(secret.algorithm, secret.key, nonce);
  if (associated.length > 0) cipher.setAAD(associated);
  out[at] = sealing.encryptionVersion;
  out.set(nonce, at + VERSION_LENGTH);
  const body = at + VERSION_LENGTH + NONCE_LENGTH;
  // GCM is a stream mode: update() gives as many bytes as it takes, final() none.
  out.set(cipher.update(plain), body);
  let end = body + plain.length;
  if (sealing.encryptionVersion === 0) {
    const size = BLOCK_LENGTH - (plain.length % BLOCK_LENGTH);
    out.set(cipher.update(new Uint8Array(size).fill(size)), end);
    end += size;
  }
  cipher.final();
  out.set(cipher.getAuthTag(), end);
}

/**
 * The plaintext of an envelope, tried with every key in order.
 * @throws DecodeError on an unknown version, a short envelope, no fitting key, or impossible padding.
 */
export function open(sealed: Uint8Array, keys: readonly Uint8Array[], associated: Uint8Array): Uint8Array {
  const version = sealed[0];
  if (version === undefined) throw new DecodeError("memberlist seal", 0, "empty envelope");
  if (version !== 0 && version !== 1)
    throw new DecodeError("memberlist seal", 0, `encryption version ${version} is above 1`);
  if (sealed.length < sealOverhead(version))
    throw new DecodeError("memberlist seal", 0, "shorter than version, nonce and tag");
  const nonce = sealed.subarray(VERSION_LENGTH, VERSION_LENGTH + NONCE_LENGTH);
  const body = sealed.subarray(VERSION_LENGTH + NONCE_LENGTH, sealed.length - TAG_LENGTH);
  const tag = sealed.subarray(sealed.length - TAG_LENGTH);
  for (const key of keys) {
    const plain = openWith(key, nonce, body, tag, associated);
    if (plain === undefined) continue;
    return version === 0 ? withoutPadding(plain) : plain;
  }
  throw new KeyMismatch("other-key", "memberlist seal", 0, "no installed key opens it");
}

function openWith(
  key: Uint8Array,
  nonce: Uint8Array,
  body: Uint8Array,
  tag: Uint8Array,
  associated: Uint8Array,
): Uint8Array | undefined {
  const secret = secretOf(key);
  const decipher = createDecipheriv(secret.algorithm, secret.key, nonce, { authTagLength: TAG_LENGTH });
  decipher.setAuthTag(tag);
  if (associated.length > 0) decipher.setAAD(associated);
  const plain = decipher.update(body);
  try {
    decipher.final();
  } catch {
    // The tag does not fit: another key, another label, or tampering. Node says it by throwing.
    return undefined;
  }
  return new Uint8Array(plain.buffer, plain.byteOffset, plain.byteLength);
}

/** Go looks at the last byte only, and takes 0 for "no padding". */
function withoutPadding(plain: Uint8Array): Uint8Array {
  const size = plain[plain.length - 1] ?? 0;
  if (size > plain.length)
    throw new DecodeError("memberlist seal", plain.length - 1, "padding longer than the text");
  return plain.subarray(0, plain.length - size);
}

interface Secret {
  readonly algorithm: CipherGCMTypes;
  readonly key: KeyObject;
}

/** Key bytes are set up for OpenSSL once, not once per packet; forgotten together with them. */
const secrets = new WeakMap<Uint8Array, Secret>();

function secretOf(key: Uint8Array): Secret {
  let secret = secrets.get(key);
  if (secret === undefined) {
    assert(key.length === 16 || key.length === 24 || key.length === 32, "an AES key has 16, 24 or 32 bytes");
    secret = {
      algorithm: key.length === 16 ? "aes-128-gcm" : key.length === 24 ? "aes-192-gcm" : "aes-256-gcm",
      key: createSecretKey(key),
    };
    secrets.set(key, secret);
  }
  return secret;
}

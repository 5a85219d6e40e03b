import { assert } from "../base/assert.ts";
import { bytesEqual } from "../base/bytes.ts";
import { NetError } from "../base/error.ts";

/** Protects packet handling: each unreadable packet is tried with every key. */
export const MAX_KEYS = 16;

/**
 * Gossip keys (memberlist keyring.go): the first seals, all of them open. A rotation is: install everywhere, use
 * everywhere, remove the old one everywhere. Immutable; changing gives another ring.
 */
export class Keyring {
  /** The first one seals. Empty: no encryption. */
  readonly keys: readonly Uint8Array[];

  private constructor(keys: readonly Uint8Array[]) {
    this.keys = keys;
  }

  /** @throws NetError `key-length` or `key-limit`. Repeated keys count once. */
  static of(keys: readonly Uint8Array[]): Keyring {
    return keys.reduce((ring: Keyring, key) => ring.install(key), new Keyring([]));
  }

  get primary(): Uint8Array | undefined {
    return this.keys[0];
  }

  has(key: Uint8Array): boolean {
    return this.keys.some((known) => bytesEqual(known, key));
  }

  /** Adds a key at the end; the first ever becomes primary. Known ones change nothing. @throws NetError */
  install(key: Uint8Array): Keyring {
    if (![16, 24, 32].includes(key.length)) {
      throw new NetError("key-length", `install key of ${key.length} bytes: AES takes 16, 24 or 32`);
    }
    if (this.has(key)) return this;
    if (this.keys.length >= MAX_KEYS) {
      throw new NetError(
        "key-limit",
        `install key: ${MAX_KEYS} keys are installed already; remove an old one`,
      );
    }
    return new Keyring([...this.keys, key.slice()]);
  }

  /** Makes an installed key the one that seals. @throws NetError `key-unknown` */
  use(key: Uint8Array): Keyring {
    const index = this.#indexOf(key, "use");
    const chosen = this.keys[index];
    assert(chosen !== undefined, "an index found is in the ring");
    return new Keyring([chosen, ...this.keys.filter((_, at) => at !== index)]);
  }

  /** @throws NetError `key-primary` for the key that seals, `key-unknown` for one that is not there. */
  remove(key: Uint8Array): Keyring {
    const index = this.#indexOf(key, "remove");
    if (index === 0) {
      throw new NetError("key-primary", "remove key: it seals what we send; use another key first");
    }
    return new Keyring(this.keys.filter((_, at) => at !== index));
  }

  #indexOf(key: Uint8Array, verb: string): number {
    const index = this.keys.findIndex((known) => bytesEqual(known, key));
    if (index < 0) throw new NetError("key-unknown", `${verb} key: it is not installed; install it first`);
    return index;
  }
}

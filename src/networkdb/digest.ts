/**
 * Which rows two nodes do not share, without sending them: rows are spread over buckets by key, and a bucket's hash is
 * the XOR of the hashes of its live rows, so that their order does not matter. Tombstones are left out: a node that
 * forgot one a moment earlier has nothing to tell, and a row that should be dead still differs where it lives.
 */
import { DIGEST_BUCKET_BYTES, MAX_DIGEST_BUCKETS } from "../wire/networkdb/bulk-sync.ts";
import type { Entry } from "./entry.ts";
import type { RowStore } from "./row-store.ts";

/** Rows a bucket holds about: what one changed row costs to find out. */
const ROWS_PER_BUCKET = 32;

/** Buckets fit for that many rows: a power of two, at most `limit`. */
export function bucketCountFor(rows: number, limit: number): number {
  let count = 1;
  while (count * ROWS_PER_BUCKET < rows && count * 2 <= Math.min(limit, MAX_DIGEST_BUCKETS)) count *= 2;
  return count;
}

/** Hashes of the live rows that `counts` admits, in `bucketCount` (a power of two) buckets. */
export function digestRows(
  rows: RowStore,
  bucketCount: number,
  counts: (entry: Entry) => boolean,
): Uint8Array {
  const words = new Uint32Array(2 * bucketCount);
  rows.forEach((table, key, entry) => {
    if (entry.deleted || !counts(entry)) return;
    const keyHash = hashRow(table, key);
    const at = 2 * (keyHash & (bucketCount - 1));
    // Table and key twice, differently mixed: 64 bits, so that equal hashes mean equal rows for all purposes.
    const version = mix(keyHash ^ entry.time, hashText(entry.owner, entry.time / 0x1_0000_0000));
    words[at] = (words[at] ?? 0) ^ version;
    words[at + 1] = (words[at + 1] ?? 0) ^ mix(version + keyHash, hashText(key, 0x9e3779b9));
  });
  const bytes = new Uint8Array(DIGEST_BUCKET_BYTES * bucketCount);
  const view = new DataView(bytes.buffer);
  words.forEach((word, index) => view.setUint32(4 * index, word));
  return bytes;
}

/** The buckets that differ between two digests of the same size. */
export class BucketSet {
  readonly #flags: Uint8Array;
  #size = 0;

  constructor(a: Uint8Array, b: Uint8Array) {
    this.#flags = new Uint8Array(a.length / DIGEST_BUCKET_BYTES);
    for (let i = 0; i < a.length; i++)
      if (a[i] !== b[i]) this.#flags[Math.floor(i / DIGEST_BUCKET_BYTES)] = 1;
    for (const flag of this.#flags) this.#size += flag;
  }

  get size(): number {
    return this.#size;
  }

  /** Whether the row's bucket differs. */
  has(table: string, key: string): boolean {
    return this.#flags[hashRow(table, key) & (this.#flags.length - 1)] === 1;
  }
}

function hashRow(table: string, key: string): number {
  return mix(hashText(key, 0x811c9dc5), table.length);
}

/** FNV-1a over UTF-16 units; not for adversaries, who could lie about the rows just as well. */
function hashText(text: string, seed: number): number {
  let hash = seed | 0;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash;
}

/** Murmur3's finalizer over two words: every input bit reaches every output bit. */
function mix(a: number, b: number): number {
  let hash = (a ^ Math.imul(b, 0x9e3779b1)) | 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

import { isDeepStrictEqual } from "node:util";
import { DecodeError } from "../../src/base/error.ts";

/** One decoder of bytes that come from outside. */
export interface FuzzTarget {
  readonly name: string;
  /** Good inputs to start from; mutations of them reach further than noise does. */
  readonly corpus: readonly Uint8Array[];
  /** Decodes once. Throws anything but DecodeError if the decoder is wrong. */
  readonly run: (input: Uint8Array) => void;
}

export interface FuzzFormat<T> {
  readonly name: string;
  readonly corpus: readonly Uint8Array[];
  readonly decode: (input: Uint8Array) => T;
  /** If there is one: what was decoded must come back from what it encodes to. */
  readonly encode?: (value: T) => Uint8Array;
}

/** A decoder may give a value or throw DecodeError; nothing else, and the input stays as it was. */
export function fuzzTarget<T>(format: FuzzFormat<T>): FuzzTarget {
  const { name, corpus, decode, encode } = format;
  return {
    name,
    corpus,
    run(input) {
      let value: T;
      try {
        value = decode(input);
      } catch (error) {
        if (error instanceof DecodeError) return;
        throw error;
      }
      if (encode === undefined) return;
      const again = decode(encode(value));
      if (!isDeepStrictEqual(again, value)) throw new Error("decode(encode(value)) differs from value");
    },
  };
}

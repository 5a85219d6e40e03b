/** Elements of a set in which the kernel counts: who was seen, and how often. */
import { ByteReader } from "../../base/bytes.ts";
import { attributeMap, decodeAttributes, decodeText } from "../netlink/message.ts";

const NFTA_SET_ELEM_LIST_ELEMENTS = 3;
const NFTA_SET_ELEM_KEY = 1;
const NFTA_SET_ELEM_DATA = 2;
const NFTA_SET_ELEM_EXPR = 7;
const NFTA_DATA_VALUE = 1;
const NFTA_DATA_VERDICT = 2;
const NFTA_VERDICT_CHAIN = 2;
const NFTA_EXPR_NAME = 1;
const NFTA_EXPR_DATA = 2;
const NFTA_COUNTER_PACKETS = 2;

export interface CountedElement {
  /** The key's bytes, in network order. */
  readonly key: Uint8Array;
  readonly packets: bigint;
  /** Of a verdict map: the chain to go to. */
  readonly chain?: string;
}

/** The elements of one message of a dump (NFT_MSG_GETSETELEM). @throws DecodeError */
export function decodeCountedElements(payload: Uint8Array): CountedElement[] {
  const input = new ByteReader(payload, "nft counted elements");
  input.skip(4);
  const list = attributeMap(input).get(NFTA_SET_ELEM_LIST_ELEMENTS);
  if (list === undefined) return [];
  return [...decodeAttributes(new ByteReader(list, "nft counted elements"))].flatMap(({ value }) => {
    const element = attributeMap(value);
    const data = element.get(NFTA_SET_ELEM_KEY);
    const key = data === undefined ? undefined : attributeMap(data).get(NFTA_DATA_VALUE);
    if (key === undefined) return [];
    const chain = chainOf(element.get(NFTA_SET_ELEM_DATA));
    const packets = packetsOf(element.get(NFTA_SET_ELEM_EXPR));
    return [{ key, packets, ...(chain === undefined ? {} : { chain }) }];
  });
}

function chainOf(data: Uint8Array | undefined): string | undefined {
  const verdict = data && attributeMap(data).get(NFTA_DATA_VERDICT);
  const chain = verdict && attributeMap(verdict).get(NFTA_VERDICT_CHAIN);
  return chain && decodeText(chain);
}

function packetsOf(expression: Uint8Array | undefined): bigint {
  if (expression === undefined) return 0n;
  const parts = attributeMap(expression);
  const name = parts.get(NFTA_EXPR_NAME);
  const data = parts.get(NFTA_EXPR_DATA);
  if (name === undefined || data === undefined || decodeText(name) !== "counter") return 0n;
  const packets = attributeMap(data).get(NFTA_COUNTER_PACKETS);
  return packets === undefined ? 0n : new ByteReader(packets, "nft counted elements").u64();
}

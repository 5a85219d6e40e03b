/**
 * nf_tables over nfnetlink: message types, the transaction's envelope, and the objects we read back.
 * include/uapi/linux/netfilter/{nfnetlink.h,nf_tables.h}. Behind the netlink header: `struct nfgenmsg`
 * (family 1, version 1, resource id 2, big endian), then attributes; integers in attributes are big endian.
 */
import { ByteReader, type ByteWriter } from "../../base/bytes.ts";
import {
  attributeMap,
  decodeText,
  NetlinkBatch,
  NLM_F,
  writeTextAttribute,
  writeU32beAttribute,
} from "../netlink/message.ts";

const NFNL_SUBSYS_NFTABLES = 10;
const NFNL_MSG_BATCH_BEGIN = 16;
const NFNL_MSG_BATCH_END = 17;
const NFNL_BATCH_GENID = 1;
export const NFPROTO_INET = 1;
const NFPROTO_IPV4 = 2;
const NFGENMSG_LENGTH = 4; // bytes

/** Netlink message types: the subsystem in the high byte. */
export const NFT_MESSAGE = {
  getTable: (NFNL_SUBSYS_NFTABLES << 8) | 1,
  deleteTable: (NFNL_SUBSYS_NFTABLES << 8) | 2,
  getChain: (NFNL_SUBSYS_NFTABLES << 8) | 4,
  getRule: (NFNL_SUBSYS_NFTABLES << 8) | 7,
  getSet: (NFNL_SUBSYS_NFTABLES << 8) | 10,
  newElement: (NFNL_SUBSYS_NFTABLES << 8) | 12,
  getElement: (NFNL_SUBSYS_NFTABLES << 8) | 13,
  deleteElement: (NFNL_SUBSYS_NFTABLES << 8) | 14,
  newGeneration: (NFNL_SUBSYS_NFTABLES << 8) | 15,
  getGeneration: (NFNL_SUBSYS_NFTABLES << 8) | 16,
  getObject: (NFNL_SUBSYS_NFTABLES << 8) | 19,
} as const;

const NFTA_TABLE_NAME = 1;
const NFTA_TABLE_HANDLE = 4;
const NFTA_TABLE_USERDATA = 6;
const NFTA_RULE_TABLE = 1;
const NFTA_RULE_CHAIN = 2;
const NFTA_RULE_HANDLE = 3;
const NFTA_CHAIN_TABLE = 1;
const NFTA_CHAIN_HANDLE = 2;
const NFTA_CHAIN_NAME = 3;
const NFTA_CHAIN_POLICY = 5;
/** The first attribute of every object and notification that belongs to a table. */
const NFTA_ANY_TABLE = 1;
const NFTA_SET_TABLE = 1;
const NFTA_SET_NAME = 2;
const NFTA_OBJ_TABLE = 1;
const NFTA_OBJ_NAME = 2;
const NFTA_OBJ_TYPE = 3;
const NFTA_OBJ_DATA = 4;
const NFT_OBJECT_COUNTER = 1;
const NFTA_COUNTER_BYTES = 1;
const NFTA_COUNTER_PACKETS = 2;
const NFTA_GEN_ID = 1;
/** libnftnl's type for a comment in a table's user data; `nft` prints it. */
const UDATA_TABLE_COMMENT = 0;

export interface NftTable {
  readonly name: string;
  /** Unique in the namespace's life: another handle is another table. */
  readonly handle: bigint;
  readonly comment?: string;
}

export interface NftCounter {
  readonly packets: bigint;
  readonly bytes: bigint;
}

export function writeNfgenmsg(out: ByteWriter, family: number, resource = 0): void {
  out.u8(family).u8(0).u16(resource);
}

/**
 * One transaction: all of it or nothing. `fill` adds the changes. With `generation` the kernel refuses it
 * (ERESTART) unless its ruleset is still that generation. Send it "as flagged": the last change is
 * acknowledged, failures always are, and their index in the batch is one more than their place among the changes.
 */
export function transaction(
  fill: (batch: NetlinkBatch) => void,
  options: { readonly generation?: number; readonly capacityBytes?: number } = {},
): NetlinkBatch {
  const batch = new NetlinkBatch(options.capacityBytes);
  const { generation } = options;
  batch.add(NFNL_MSG_BATCH_BEGIN, 0, (out) => {
    writeNfgenmsg(out, 0, NFNL_SUBSYS_NFTABLES);
    if (generation !== undefined) writeU32beAttribute(out, NFNL_BATCH_GENID, generation);
  });
  fill(batch);
  batch.add(NFNL_MSG_BATCH_END, 0, (out) => writeNfgenmsg(out, 0, NFNL_SUBSYS_NFTABLES));
  return batch;
}

/** Deletes the table with all it holds. */
export function addDeleteTable(batch: NetlinkBatch, table: string): void {
  batch.add(NFT_MESSAGE.deleteTable, NLM_F.ack, (out) => {
    writeNfgenmsg(out, NFPROTO_INET);
    writeTextAttribute(out, NFTA_TABLE_NAME, table);
  });
}

export function writeGetTable(out: ByteWriter, table: string): void {
  writeNfgenmsg(out, NFPROTO_INET);
  writeTextAttribute(out, NFTA_TABLE_NAME, table);
}

/** @throws DecodeError */
export function decodeTable(payload: Uint8Array): NftTable {
  const attributes = nftAttributes(payload, "nft table");
  const comment = tableComment(attributes.get(NFTA_TABLE_USERDATA));
  return {
    name: decodeText(attributes.get(NFTA_TABLE_NAME) ?? new Uint8Array(0)),
    handle: decodeHandle(attributes.get(NFTA_TABLE_HANDLE)),
    ...(comment === undefined ? {} : { comment }),
  };
}

/** Asks for every rule of the table. */
export function writeGetRules(out: ByteWriter, table: string): void {
  writeNfgenmsg(out, NFPROTO_INET);
  writeTextAttribute(out, NFTA_RULE_TABLE, table);
}

/** A rule's chain and handle; a rule that was replaced has another handle. */
export interface NftRule {
  readonly chain: string;
  readonly handle: bigint;
}

/** Undefined: another table's (old kernels ignore the filter). @throws DecodeError */
export function decodeRule(payload: Uint8Array, table: string): NftRule | undefined {
  const attributes = nftAttributes(payload, "nft rule");
  if (decodeText(attributes.get(NFTA_RULE_TABLE) ?? new Uint8Array(0)) !== table) return undefined;
  const chain = decodeText(attributes.get(NFTA_RULE_CHAIN) ?? new Uint8Array(0));
  return { chain, handle: decodeHandle(attributes.get(NFTA_RULE_HANDLE)) };
}

/** Asks for every chain; the kernel has no filter for these. */
export function writeGetChains(out: ByteWriter): void {
  writeNfgenmsg(out, NFPROTO_INET);
}

/** Asks for one chain of iptables' own table for IPv4, as its nftables back end makes it. */
export function writeGetIpv4Chain(out: ByteWriter, table: string, chain: string): void {
  writeNfgenmsg(out, NFPROTO_IPV4);
  writeTextAttribute(out, NFTA_CHAIN_TABLE, table);
  writeTextAttribute(out, NFTA_CHAIN_NAME, chain);
}

/** Name, handle and policy of a chain in one text; undefined for another table's. @throws DecodeError */
export function decodeChain(payload: Uint8Array, table: string): string | undefined {
  const attributes = nftAttributes(payload, "nft chain");
  if (decodeText(attributes.get(NFTA_CHAIN_TABLE) ?? new Uint8Array(0)) !== table) return undefined;
  const name = decodeText(attributes.get(NFTA_CHAIN_NAME) ?? new Uint8Array(0));
  const policy = attributes.get(NFTA_CHAIN_POLICY);
  const verdict = policy === undefined ? "" : new ByteReader(policy, "nft chain").u32();
  return `${name} ${decodeHandle(attributes.get(NFTA_CHAIN_HANDLE))} ${verdict}`;
}

/** Whether a notification is about something of the table. @throws DecodeError */
export function concernsTable(type: number, payload: Uint8Array, table: string): boolean {
  if (type === NFT_MESSAGE.newGeneration) return false;
  const name = nftAttributes(payload, "nft notification").get(NFTA_ANY_TABLE);
  return name !== undefined && decodeText(name) === table;
}

function decodeHandle(value: Uint8Array | undefined): bigint {
  return value === undefined ? 0n : new ByteReader(value, "nft handle").u64();
}

/** Asks for every set of the table. */
export function writeGetSets(out: ByteWriter, table: string): void {
  writeNfgenmsg(out, NFPROTO_INET);
  writeTextAttribute(out, NFTA_SET_TABLE, table);
}

/** Name of a set; undefined for another table's. */
export function decodeSetName(payload: Uint8Array, table: string): string | undefined {
  const attributes = nftAttributes(payload, "nft set");
  if (decodeText(attributes.get(NFTA_SET_TABLE) ?? new Uint8Array(0)) !== table) return undefined;
  return decodeText(attributes.get(NFTA_SET_NAME) ?? new Uint8Array(0));
}

export function writeGetCounter(out: ByteWriter, table: string, name: string): void {
  writeNfgenmsg(out, NFPROTO_INET);
  writeTextAttribute(out, NFTA_OBJ_TABLE, table);
  writeTextAttribute(out, NFTA_OBJ_NAME, name);
  writeU32beAttribute(out, NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
}

/** @throws DecodeError */
export function decodeCounter(payload: Uint8Array): NftCounter {
  const value = nftAttributes(payload, "nft counter").get(NFTA_OBJ_DATA);
  const attributes = attributeMap(new ByteReader(value ?? new Uint8Array(0), "nft counter"));
  const number = (type: number): bigint => {
    const bytes = attributes.get(type);
    return bytes === undefined ? 0n : new ByteReader(bytes, "nft counter").u64();
  };
  return { packets: number(NFTA_COUNTER_PACKETS), bytes: number(NFTA_COUNTER_BYTES) };
}

/** Asks for the ruleset's generation: it grows by one with every change of any table of the namespace. */
export function writeGetGeneration(out: ByteWriter): void {
  writeNfgenmsg(out, 0);
}

/** @throws DecodeError */
export function decodeGeneration(payload: Uint8Array): number {
  const value = nftAttributes(payload, "nft generation").get(NFTA_GEN_ID);
  return new ByteReader(value ?? new Uint8Array(0), "nft generation").u32();
}

function nftAttributes(payload: Uint8Array, format: string): ReadonlyMap<number, Uint8Array> {
  const input = new ByteReader(payload, format);
  input.skip(NFGENMSG_LENGTH);
  return attributeMap(input);
}

/** User data: type 1, length 1, value; a comment ends in NUL. */
function tableComment(userdata: Uint8Array | undefined): string | undefined {
  if (userdata === undefined) return undefined;
  const input = new ByteReader(userdata, "nft user data");
  while (input.remaining >= 2) {
    const type = input.u8();
    const value = input.take(input.u8());
    if (type === UDATA_TABLE_COMMENT) return decodeText(value);
  }
  return undefined;
}

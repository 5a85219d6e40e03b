/**
 * NetworkDB table event: one version of one row, as gossip and as an item of a bulk sync.
 *
 *     message TableEvent {
 *       Type type = 1;                 // 0 invalid, 1 create, 2 update, 3 delete
 *       uint64 l_time = 2;             // table clock of the owner
 *       string node_name = 3;          // owner, not relay
 *       string network_id = 4;
 *       string table_name = 5;
 *       string key = 6;                // no '/'
 *       bytes value = 7;
 *       int32 residual_reap_time = 8;  // seconds until the tombstone is forgotten
 *     }
 */
import { DecodeError } from "../../base/error.ts";
import { networkId, nodeName, type NetworkId, type NodeName } from "../../base/id.ts";
import {
  asDecodeError,
  protoReader,
  readTime,
  RepeatedText,
  skipField,
  writeBytes,
  writeString,
  writeVarint,
  type ProtoWriter,
} from "./protobuf.ts";

export interface TableEvent {
  readonly type: "table-event";
  /** Create and update mean the same to a receiver. */
  readonly change: "create" | "update" | "delete";
  readonly time: number;
  readonly node: NodeName;
  readonly network: NetworkId;
  /** 1–255 characters without `/`, like the key. */
  readonly table: string;
  readonly key: string;
  /** A view into the decoded bytes: copy to keep. */
  readonly value: Uint8Array;
  /** Whole seconds, 0 … 2³¹ − 1. */
  readonly residualReapSeconds: number;
}

const FORMAT = "NetworkDB table event";
const CHANGES = ["create", "update", "delete"] as const;
const EMPTY = new Uint8Array();
const nodes = new RepeatedText(nodeName);
const networks = new RepeatedText(networkId);
const tables = new RepeatedText(tableName);

export function writeTableEvent(writer: ProtoWriter, event: TableEvent): void {
  writeVarint(writer, 1, CHANGES.indexOf(event.change) + 1);
  writeVarint(writer, 2, event.time);
  writeString(writer, 3, event.node);
  writeString(writer, 4, event.network);
  writeString(writer, 5, event.table);
  writeString(writer, 6, event.key);
  writeBytes(writer, 7, event.value);
  writeVarint(writer, 8, event.residualReapSeconds);
}

export function decodeTableEvent(bytes: Uint8Array): TableEvent {
  let type = 0;
  let time = 0;
  let node: NodeName | undefined;
  let network: NetworkId | undefined;
  let table: string | undefined;
  let key = "";
  let value: Uint8Array = EMPTY;
  let residual = 0;
  const reader = protoReader(bytes);
  try {
    while (reader.pos < reader.len) {
      const fieldTag = reader.tag();
      switch (fieldTag) {
        case 0x08:
          type = reader.uint32();
          break;
        case 0x10:
          time = readTime(reader);
          break;
        case 0x1a:
          node = nodes.read(reader);
          break;
        case 0x22:
          network = networks.read(reader);
          break;
        case 0x2a:
          table = tables.read(reader);
          break;
        case 0x32:
          key = reader.stringVerify();
          break;
        case 0x3a:
          value = reader.bytes();
          break;
        case 0x40:
          residual = reader.int32();
          break;
        default:
          skipField(reader, fieldTag);
      }
    }
  } catch (error) {
    throw asDecodeError(FORMAT, reader, error);
  }
  const change = CHANGES[type - 1];
  if (change === undefined) throw new DecodeError(FORMAT, 0, `type ${type} is not 1, 2 or 3`);
  if (node === undefined || network === undefined || table === undefined)
    throw new DecodeError(FORMAT, 0, "has no owner, network or table");
  if (!isRowName(key)) throw new DecodeError(FORMAT, 0, "key is empty, too long or has a '/'");
  if (residual < 0) throw new DecodeError(FORMAT, 0, "residual reap time is negative");
  return {
    type: "table-event",
    change,
    time,
    node,
    network,
    table,
    key,
    value,
    residualReapSeconds: residual,
  };
}

function tableName(text: string): string {
  if (!isRowName(text)) throw new DecodeError(FORMAT, 0, "table name is empty, too long or has a '/'");
  return text;
}

/** Whether `text` can be a table name or a key. Upstream joins them with `/` into paths. */
export function isRowName(text: string): boolean {
  return text.length > 0 && text.length <= 255 && !text.includes("/");
}

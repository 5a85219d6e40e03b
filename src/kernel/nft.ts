/**
 * Our nftables table in one network namespace: read it, change it, repair it.
 *
 * The skeleton (chains, rules, empty sets) is made by one run of `nft`; elements, which is what changes from
 * second to second, go over nfnetlink in this process. Every change is one transaction that names the
 * ruleset generation it was planned on, so that it fails, and is planned again, when somebody else was faster.
 */
import { spawn } from "node:child_process";
import { errorCode, errorText, NetError } from "../base/error.ts";
import { type IpAddr, ipFromBytes } from "../base/ip.ts";
import {
  isEmptyPlan,
  planRepair,
  planUpdate,
  type ActualTable,
  type ElementChange,
  type RulesetPlan,
} from "../mesh/plan.ts";
import {
  elementsText,
  rowLength,
  sortRows,
  TABLE,
  type Ruleset,
  type SetDefinition,
} from "../mesh/ruleset.ts";
import { type CountedElement, decodeCountedElements } from "../wire/nftables/counted-element.ts";
import { addElements, ElementReader, writeGetElements } from "../wire/nftables/element.ts";
import {
  addDeleteTable,
  concernsTable,
  decodeChain,
  decodeCounter,
  decodeGeneration,
  decodeRule,
  decodeSetName,
  decodeTable,
  NFT_MESSAGE,
  transaction,
  writeGetChains,
  writeGetCounter,
  writeGetGeneration,
  writeGetRules,
  writeGetSets,
  writeGetTable,
  type NftCounter,
  type NftRule,
  type NftTable,
} from "../wire/nftables/message.ts";
import { NetlinkSocket, refusal } from "./netlink-socket.ts";
import type { Netns } from "./netns.ts";

/** Elements per transaction; a larger load is split, so that the loop turns and the socket's buffer suffices. */
const TRANSACTION_ELEMENTS = 50_000;
/** Above this the kernel's notifications of what we add would cost as much as adding it. */
const DEAF_ELEMENTS = 2_000;
/** Somebody else's changes may come between reading and writing a few times, not for ever. */
const ATTEMPTS = 4;

/** What a reconciliation did. */
export interface NftOutcome {
  /** What was changed; empty when all agreed. */
  readonly plan: RulesetPlan;
  /** Another hand had changed our table. */
  readonly repaired: boolean;
  /** What it had changed and was left; undefined when nothing, or when all was repaired. */
  readonly drift?: RulesetPlan;
}

/** Thrown at what would need a repair first, where none may be done. */
const NOT_REPAIRED = "not-repaired";

/** An address the kernel has seen, and how many packets of it. */
export interface CountedAddress {
  readonly address: IpAddr;
  readonly packets: bigint;
}

const NFNLGRP_NFTABLES = 7;
/** Of notifications; when others load a hundred thousand elements, some are lost, and we look. */
const EVENT_BUFFER_BYTES = 256 * 1024;

/**
 * All keepers of this process. As long as anybody listens, in whatever namespace (netlink_has_listeners does not ask which),
 * the kernel makes notifications of everything.
 */
const keepers = new Set<NftTableKeeper>();

/** Keeps the table of one namespace what it should be. Calls do not overlap: await one before the next. */
export class NftTableKeeper implements Disposable {
  readonly #netns: Netns | undefined;
  readonly #socket: NetlinkSocket;
  readonly #events: NetlinkSocket;
  readonly #table: string;
  readonly #where: string;
  /** What we know to be in the kernel, as long as the generation is the one we left. */
  #known: { readonly ruleset: Ruleset; readonly generation: number; readonly structure: string } | undefined;
  /** Another hand changed something of our table, or may have. */
  #touched = false;
  /** It did, and that was left: the generation does not show it. */
  #drifted = false;

  /** In `netns`, or in the namespace of this process. `netns` must stay open as long as this. @throws NetError */
  constructor(netns?: Netns, table = TABLE) {
    this.#netns = netns;
    this.#table = table;
    this.#where = netns?.path ?? "the host";
    this.#socket = new NetlinkSocket("netfilter", netns);
    this.#events = new NetlinkSocket("netfilter", netns, { receiveBufferBytes: EVENT_BUFFER_BYTES });
    this.#events.subscribe({
      groups: [NFNLGRP_NFTABLES],
      onMessage: ({ type, payload, portId }) => {
        if (portId !== this.#socket.portId && concernsTable(type, payload, table)) this.#touch();
      },
      onOverrun: () => this.#touch(),
    });
    keepers.add(this);
  }

  /** Called when another hand has changed something of our table; `reconcile` then looks at all of it. */
  onTouched: () => void = () => undefined;

  /**
   * Makes the table what `desired` says; undefined removes it. Looks into the kernel only when somebody else
   * changed our table (a hundred thousand elements take a quarter of a second), which notifications tell, or with
   * `deep`, when the ruleset's generation shows that anything changed. With `repair` false only the change from what
   * was desired before is made, and what another hand did is left. @throws NetError
   */
  async reconcile(
    desired: Ruleset | undefined,
    options: { readonly deep?: boolean; readonly repair?: boolean } = {},
  ): Promise<NftOutcome> {
    if (desired === undefined) {
      this.#known = undefined;
      const table = this.readTable();
      if (table !== undefined) this.remove();
      return { plan: { changes: [] }, repaired: false };
    }
    const known = this.#known;
    if (options.repair === false && known !== undefined)
      return this.#update(desired, known.ruleset, options.deep === true);
    for (let attempt = 1; ; attempt++) {
      const { plan, repaired, generation } = this.#plan(desired, options.deep === true);
      try {
        await this.#apply(desired, plan, generation);
        this.#drifted = false;
        return { plan, repaired };
      } catch (error) {
        // Elements are not what we thought, or the ruleset moved on: look again, at everything.
        this.#known = undefined;
        if (attempt >= ATTEMPTS || !RETRIED.has(errorCode(error) ?? "")) throw error;
      }
    }
  }

  /** Leaves what another hand did, and tells it. @throws NetError `not-repaired` when that is in the way */
  async #update(desired: Ruleset, before: Ruleset, deep: boolean): Promise<NftOutcome> {
    const { plan: found } = this.#plan(before, deep);
    const drift = isEmptyPlan(found) ? {} : { drift: found };
    this.#drifted = !isEmptyPlan(found);
    const plan = planUpdate(desired, before);
    if (!isEmptyPlan(plan)) {
      const known = this.#known;
      try {
        await this.#apply(desired, plan, this.generation());
      } catch (cause) {
        this.#known = known;
        if (!(cause instanceof NetError)) throw cause;
        const cure = "repair is off, and another hand changed the table: netctl repair on";
        throw new NetError(NOT_REPAIRED, `${cause.message} (${cure})`, { cause });
      }
    } else if (!this.#drifted) await this.#apply(desired, plan, this.generation());
    // The next touch is news, whatever stands.
    this.#touched = false;
    return { plan, repaired: false, ...drift };
  }

  /** What `reconcile` would do now, for `netctl plan`. @throws NetError */
  plan(desired: Ruleset | undefined, options: { readonly deep?: boolean } = {}): RulesetPlan {
    if (desired === undefined) return { changes: [] };
    return this.#plan(desired, options.deep === true).plan;
  }

  /** Whether somebody else changed any ruleset of the namespace since we last looked or wrote. */
  changedByOthers(): boolean {
    return this.#known === undefined || this.#known.generation !== this.generation();
  }

  /** The table with all its elements; undefined when there is none. `sets` says how to read them. */
  read(sets: readonly SetDefinition[]): ActualTable | undefined {
    const table = this.readTable();
    if (table === undefined) return undefined;
    const names = this.#setNames();
    const rows = new Map<string, Uint32Array>();
    for (const set of sets)
      if (names.has(set.name)) rows.set(set.name, sortRows(set, this.#readElements(set)));
    return { comment: table.comment ?? "", rules: this.#rules(), rows };
  }

  /** The elements of a set that the rules themselves fill; none when it is not there. @throws NetError */
  readSet(set: SetDefinition): Uint32Array {
    try {
      return this.#readElements(set);
    } catch (error) {
      if (errorCode(error) === "ENOENT") return new Uint32Array(0);
      throw error;
    }
  }

  readTable(): NftTable | undefined {
    const request = {
      type: NFT_MESSAGE.getTable,
      encode: (out: Parameters<typeof writeGetTable>[0]) => writeGetTable(out, this.#table),
    };
    try {
      return this.#socket.get(`read table ${this.#table} in ${this.#where}`, request, (message) =>
        decodeTable(message.payload),
      );
    } catch (error) {
      if (errorCode(error) === "ENOENT") return undefined;
      throw error;
    }
  }

  /** A named counter of our table; undefined when it is not there. */
  counter(name: string): NftCounter | undefined {
    try {
      return this.#socket.get(
        `read counter ${name} in ${this.#where}`,
        { type: NFT_MESSAGE.getObject, encode: (out) => writeGetCounter(out, this.#table, name) },
        (message) => decodeCounter(message.payload),
      );
    } catch (error) {
      if (errorCode(error) === "ENOENT") return undefined;
      throw error;
    }
  }

  /** Addresses in a set of such; none when there is no such set. */
  addresses(set: SetDefinition): IpAddr[] {
    if (!this.#setNames().has(set.name)) return [];
    const rows = this.#readElements(set);
    const bytes = new Uint8Array(rows.length * 4);
    const view = new DataView(bytes.buffer);
    rows.forEach((word, index) => view.setUint32(4 * index, word));
    const size = 4 * rowLength(set).total;
    return Array.from({ length: bytes.length / size }, (_, index) =>
      ipFromBytes(bytes.subarray(index * size, (index + 1) * size)),
    );
  }

  /** Addresses in a set that the kernel fills and counts in; none when there is no such set. */
  countedAddresses(set: string): CountedAddress[] {
    return this.countedElements(set).map(({ key, packets }) => ({ address: ipFromBytes(key), packets }));
  }

  /** Elements of a set or map with what the kernel counted of each; none when there is no such set. */
  countedElements(set: string): CountedElement[] {
    if (!this.#setNames().has(set)) return [];
    return this.#socket
      .dump(
        `read set ${set} of table ${this.#table} in ${this.#where}`,
        {
          type: NFT_MESSAGE.getElement,
          encode: (out) => writeGetElements(out, this.#table, set),
        },
        (message) => decodeCountedElements(message.payload),
      )
      .flat();
  }

  generation(): number {
    return this.#socket.get(
      `read the nftables generation in ${this.#where}`,
      { type: NFT_MESSAGE.getGeneration, encode: writeGetGeneration },
      (message) => decodeGeneration(message.payload),
    );
  }

  /** Deletes the table with all it holds; nothing there is not an error. @throws NetError */
  remove(): void {
    this.#known = undefined;
    const batch = transaction((changes) => addDeleteTable(changes, this.#table));
    const [failure] = this.#socket.transact(batch, "as-flagged");
    if (failure !== undefined && failure.code !== "ENOENT")
      throw refusal(`delete table ${this.#table} in ${this.#where}`, failure);
  }

  close(): void {
    keepers.delete(this);
    this.#socket.close();
    this.#events.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #plan(
    desired: Ruleset,
    deep: boolean,
  ): { readonly plan: RulesetPlan; readonly repaired: boolean; readonly generation: number } {
    // The generation comes first: a change after it makes the transaction fail, and we look again.
    const generation = this.generation();
    this.#events.pump();
    const known = this.#known;
    const sameAsLeft =
      known !== undefined && !this.#drifted && (known.generation === generation || !(deep || this.#touched));
    if (sameAsLeft) {
      const plan = planUpdate(desired, known.ruleset);
      return { plan, repaired: false, generation };
    }
    // A rule or a chain put in the place of one of ours looks the same but for its handle.
    const replaced = known !== undefined && known.structure !== this.#structure();
    const fault = replaced ? "a chain or rule of it had been replaced" : undefined;
    const plan = planRepair(desired, this.read(desired.skeleton.sets), fault);
    return { plan, repaired: known !== undefined && !isEmptyPlan(plan), generation };
  }

  #touch(): void {
    if (this.#touched) return;
    this.#touched = true;
    this.onTouched();
  }

  /** Every chain and rule with its handle, in one text. */
  #structure(): string {
    const chains = this.#socket.dump(
      `read the chains of table ${this.#table} in ${this.#where}`,
      { type: NFT_MESSAGE.getChain, encode: writeGetChains },
      (message) => decodeChain(message.payload, this.#table),
    );
    const rules = this.#readRules().map(({ chain, handle }) => `${chain} ${handle}`);
    return [this.readTable()?.handle, ...chains, ...rules].join("\n");
  }

  async #apply(desired: Ruleset, plan: RulesetPlan, planned: number): Promise<void> {
    let generation = planned;
    if (plan.skeleton !== undefined) {
      const inline = plan.changes.map(({ set, rows }) =>
        set.inline ? elementsText(this.#table, set, rows) : "",
      );
      await runNft(`replace table ${this.#table}`, plan.skeleton.text + inline.join(""), this.#netns);
      generation = this.generation();
    }
    const changes =
      plan.skeleton === undefined ? plan.changes : plan.changes.filter(({ set }) => set.inline !== true);
    let missed = false;
    let deaf = false;
    for (const part of transactionsOf(changes)) {
      // The kernel counts up by one per transaction and leaves out zero.
      const next = generation === 0xffffffff ? 1 : generation + 1;
      if (part.elements < DEAF_ELEMENTS) this.#send(part, generation);
      else {
        deaf = true;
        if (!this.#sendDeaf(part, generation, next)) missed = true;
      }
      generation = next;
      if (part.more) await new Promise((resume) => setImmediate(resume));
    }
    const before = plan.skeleton === undefined ? this.#known?.structure : undefined;
    this.#known = { ruleset: desired, generation, structure: before ?? this.#structure() };
    if (plan.skeleton !== undefined) this.#events.pump(); // nft's own notifications, the process is another's
    this.#touched = false;
    if (deaf) this.#touchMissed(missed);
  }

  /** Nobody has heard what others did meanwhile: in this namespace (`here`), where we have watched, or in another one. */
  #touchMissed(here: boolean): void {
    for (const keeper of keepers) {
      const missed =
        keeper.#netns?.id === this.#netns?.id
          ? here
          : keeper.#known !== undefined && keeper.changedByOthers();
      if (missed) keeper.#touch();
    }
  }

  /** Without anybody here hearing of it. Whether nobody else changed anything meanwhile, which was not heard either. */
  #sendDeaf(part: Transaction, generation: number, next: number): boolean {
    for (const keeper of keepers) keeper.#events.listen(false);
    try {
      this.#send(part, generation);
    } catch (error) {
      this.#touchMissed(true);
      throw error;
    } finally {
      for (const keeper of keepers) keeper.#events.listen(true);
    }
    return this.generation() === next;
  }

  #send(part: Transaction, generation: number): void {
    const batch = transaction(
      (changes) => {
        for (const { operation, set, rows } of part.changes)
          addElements(changes, operation, this.#table, set.name, set, rows);
      },
      { generation, capacityBytes: 4096 + part.elements * 64 },
    );
    const [failure] = this.#socket.transact(batch, "as-flagged");
    if (failure === undefined) return;
    const sets = part.changes.map(({ operation, set }) => `${operation} ${set.name}`).join(", ");
    throw refusal(`change table ${this.#table} in ${this.#where} (${sets})`, failure);
  }

  /** None when there is no table. */
  #setNames(): ReadonlySet<string> {
    try {
      const names = this.#socket.dump(
        `read the sets of table ${this.#table} in ${this.#where}`,
        { type: NFT_MESSAGE.getSet, encode: (out) => writeGetSets(out, this.#table) },
        (message) => decodeSetName(message.payload, this.#table),
      );
      return new Set(names);
    } catch (error) {
      if (errorCode(error) === "ENOENT") return new Set();
      throw error;
    }
  }

  #rules(): ReadonlyMap<string, number> {
    const counts = new Map<string, number>();
    for (const { chain } of this.#readRules()) counts.set(chain, (counts.get(chain) ?? 0) + 1);
    return counts;
  }

  #readRules(): readonly NftRule[] {
    return this.#socket.dump(
      `read the rules of table ${this.#table} in ${this.#where}`,
      { type: NFT_MESSAGE.getRule, encode: (out) => writeGetRules(out, this.#table) },
      (message) => decodeRule(message.payload, this.#table),
    );
  }

  #readElements(set: SetDefinition): Uint32Array {
    // A dump that is interrupted starts again, and so must its reader: rows are kept per message.
    const payloads = this.#socket.dump(
      `read set ${set.name} of table ${this.#table} in ${this.#where}`,
      { type: NFT_MESSAGE.getElement, encode: (out) => writeGetElements(out, this.#table, set.name) },
      (message) => message.payload.slice(),
    );
    const reader = new ElementReader(set);
    for (const payload of payloads) reader.push(payload);
    return reader.rows();
  }
}

/** Errors that mean "the kernel is not what you think": a moved generation, an element gone or already there. */
const RETRIED: ReadonlySet<string> = new Set(["ERESTART", "ENOENT", "EEXIST", "EBUSY", "EINTR", "EAGAIN"]);

interface Transaction {
  readonly changes: readonly ElementChange[];
  readonly elements: number;
  /** Another one follows. */
  readonly more: boolean;
}

/** All in one as long as it is of bearable size; else in order, deletions first. */
function* transactionsOf(changes: readonly ElementChange[]): Generator<Transaction> {
  let held: ElementChange[] = [];
  let elements = 0;
  for (const change of changes) {
    const { total } = rowLength(change.set);
    for (let at = 0; at < change.rows.length;) {
      const take = Math.min(change.rows.length - at, (TRANSACTION_ELEMENTS - elements) * total);
      if (take === 0) {
        yield { changes: held, elements, more: true };
        held = [];
        elements = 0;
        continue;
      }
      held.push({ ...change, rows: change.rows.subarray(at, at + take) });
      elements += take / total;
      at += take;
    }
  }
  if (held.length > 0) yield { changes: held, elements, more: false };
}

/**
 * One transaction through `nft`, in `netns` or where we are. `what` begins the error.
 * @throws NetError `NFT_MISSING`, `NFT_REFUSED`
 */
export async function runNft(what: string, script: string, netns: Netns | undefined): Promise<void> {
  const where = netns?.path ?? "the host";
  // The child inherits the namespace the thread is in when it is made.
  const start = (): ReturnType<typeof startNft> => startNft();
  const child = netns === undefined ? start() : netns.run(start);
  const output: Buffer[] = [];
  child.stderr.on("data", (chunk: Buffer) => {
    if (output.length < 64) output.push(chunk);
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", (error) => {
      reject(
        errorCode(error) === "ENOENT"
          ? new NetError("NFT_MISSING", "run nft: there is no such program (install the package nftables)")
          : new NetError("NFT_REFUSED", `run nft in ${where}: ${errorText(error)}`, { cause: error }),
      );
    });
    child.once("close", resolve);
    child.stdin.on("error", () => {
      // It died before reading everything: its exit code says why.
    });
    child.stdin.end(script);
  });
  if (code === 0) return;
  const text = Buffer.concat(output).toString("utf8").trim().split("\n")[0] ?? "";
  const hint = text.includes("Operation not permitted") ? " (netagent needs CAP_NET_ADMIN)" : "";
  throw new NetError("NFT_REFUSED", `${what} in ${where}: ${text}${hint}`);
}

function startNft() {
  return spawn("nft", ["-f", "-"], { stdio: ["pipe", "ignore", "pipe"] });
}

/**
 * The rules of networkdb.md once more, as naively as they can be said: lists that are searched from end to end, no
 * queues, no indexes, and what watchers hear is the difference between what was visible before and after. For one
 * network as one node sees it. Left out: names that come back at the same address, and bounds.
 */
const ROW_LIFE_MS = 30 * 60_000;
const ATTACHMENT_LIFE_MS = ROW_LIFE_MS + 25_000;

export interface OracleEvent {
  readonly owner: string;
  readonly key: string;
  readonly time: number;
  readonly value: string;
  readonly deleted: boolean;
  /** Seconds; 0 = not said. */
  readonly residual: number;
}

export interface OracleRow {
  readonly owner: string;
  readonly key: string;
  time: number;
  readonly value: string;
  readonly deleted: boolean;
  /** When it is forgotten; Infinity for a live row. */
  reapAt: number;
}

interface Member {
  readonly name: string;
  state: "active" | "failed" | "left";
  /** Left memberlist only: shown a little longer. */
  resting: boolean;
  eventTime: number;
}

interface Attachment {
  readonly name: string;
  time: number;
  leaving: boolean;
  reapAt: number;
}

export class Oracle {
  readonly self: string;
  now = 0;
  rows: OracleRow[] = [];
  #members: Member[] = [];
  #attachments: Attachment[] = [];
  /** What came before what it depends on. */
  #earlyJoins: { readonly name: string; readonly time: number; readonly leaving: boolean }[] = [];
  #earlyRows: OracleEvent[] = [];
  #joined = false;
  #leftAt = -Infinity;

  constructor(self: string) {
    this.self = self;
  }

  /** Key to owner and value, as readers see it. */
  visible(): Map<string, string> {
    const live = this.rows.filter(
      ({ owner, deleted }) => !deleted && (this.#isUp(owner) || this.#member(owner)?.resting === true),
    );
    return new Map(live.map(({ key, owner, value }) => [key, `${owner} ${value}`]));
  }

  participants(): string[] {
    const others = this.#attachments.filter(({ name, leaving }) => !leaving && this.#isUp(name));
    return [...others.map(({ name }) => name), ...(this.#joined ? [this.self] : [])].sort();
  }

  join(): void {
    this.#joined = true;
  }

  leave(): void {
    if (!this.#joined) return;
    this.#joined = false;
    this.#leftAt = this.now;
    this.rows = this.rows
      .filter(({ owner }) => owner === this.self)
      .map((row) => (row.deleted ? row : { ...row, deleted: true, reapAt: this.now + ROW_LIFE_MS }));
  }

  /** An own write, at the time the clock gave it; whether there is anything to write to. */
  write(key: string, value: string, deleted: boolean, time: number): void {
    const reapAt = deleted ? this.now + ROW_LIFE_MS : Infinity;
    this.#store({ owner: this.self, key, time, value, deleted, reapAt });
  }

  mayWrite(key: string, deleted: boolean): boolean {
    return this.#joined && (!deleted || this.visible().has(key));
  }

  memberUp(name: string): void {
    const member = this.#member(name);
    if (member !== undefined) {
      member.state = "active";
      member.resting = false;
      for (const row of this.rows) if (row.owner === name && !row.deleted) row.reapAt = Infinity;
      return;
    }
    this.#members.push({ name, state: "active", resting: false, eventTime: 0 });
    const early = this.#earlyJoins.filter((event) => event.name === name).sort((a, b) => a.time - b.time);
    this.#earlyJoins = this.#earlyJoins.filter((event) => event.name !== name);
    for (const { time, leaving } of early) this.networkEvent(name, time, leaving);
  }

  memberDown(name: string, how: "failed" | "left" | "resting"): void {
    const member = this.#member(name);
    if (member === undefined || member.state === "left") return;
    if (how === "left") return this.#left(member);
    if (member.state === "failed") return;
    member.state = "failed";
    member.resting = how === "resting";
    for (const row of this.rows) {
      if (row.owner === name && !row.deleted) row.reapAt = this.now + ROW_LIFE_MS;
    }
  }

  nodeEvent(name: string, time: number, leaving: boolean): void {
    const member = this.#member(name);
    if (member === undefined || time <= member.eventTime) return;
    member.eventTime = time;
    if (member.state === "active" && leaving) this.#left(member);
  }

  networkEvent(name: string, time: number, leaving: boolean): void {
    const member = this.#member(name);
    if (name === this.self) return;
    if (member === undefined) {
      this.#earlyJoins.push({ name, time, leaving });
      return;
    }
    const known = this.#attachments.find((attachment) => attachment.name === name);
    if (known === undefined) {
      if (leaving || member.state !== "active") return;
      this.#attachments.push({ name, time, leaving, reapAt: Infinity });
      const early = this.#earlyRows.filter(({ owner }) => owner === name);
      this.#earlyRows = this.#earlyRows.filter(({ owner }) => owner !== name);
      for (const event of early) this.tableEvent(event);
      return;
    }
    if (time <= known.time) return;
    known.time = time;
    known.leaving = leaving;
    known.reapAt = leaving ? this.now + ATTACHMENT_LIFE_MS : Infinity;
    if (leaving) this.rows = this.rows.filter(({ owner }) => owner !== name);
  }

  tableEvent(event: OracleEvent): void {
    const { owner, key, time, value, deleted } = event;
    if (!this.#joined) return;
    if (owner === this.self) return this.#claim(event);
    const member = this.#member(owner);
    const attachment = this.#attachments.find(({ name }) => name === owner);
    if (member === undefined || attachment === undefined || attachment.leaving) {
      if (attachment === undefined && (member === undefined || member.state === "active"))
        this.#earlyRows.push(event);
      return;
    }
    const stored = this.rows.find((row) => row.key === key);
    if (stored !== undefined && time <= stored.time) return;
    // A live row of ours goes only to a live node that writes it.
    if (stored?.owner === this.self && !stored.deleted && (deleted || member.state !== "active")) return;
    const mortal = deleted || member.state === "failed";
    const life = event.residual === 0 ? ROW_LIFE_MS : Math.min(event.residual * 1_000, ROW_LIFE_MS);
    this.#store({ owner, key, time, value, deleted, reapAt: mortal ? this.now + life : Infinity });
  }

  /** At least 11 s, so that nothing early is left and nobody rests, and a whole number of minutes, so that rounding decides nothing. */
  pass(milliseconds: number): void {
    this.now += milliseconds;
    this.#earlyJoins = [];
    this.#earlyRows = [];
    for (const member of this.#members) member.resting = false;
    this.rows = this.rows.filter(({ reapAt }) => reapAt > this.now);
    this.#attachments = this.#attachments.filter(({ reapAt }) => reapAt > this.now);
    if (!this.#joined && this.now - this.#leftAt >= ATTACHMENT_LIFE_MS) this.rows = [];
  }

  /** Nobody else has a say in this node's rows. What was deleted and is claimed to live is deleted once more. */
  #claim({ key, time, deleted }: OracleEvent): void {
    const stored = this.rows.find((row) => row.key === key);
    if (stored === undefined && !deleted) this.write(key, "", true, time + 1);
    if (stored?.owner !== this.self || !stored.deleted) return;
    if (time > stored.time || (time === stored.time && !deleted)) stored.reapAt = this.now + ROW_LIFE_MS;
  }

  #isUp(name: string): boolean {
    return name === this.self || this.#member(name)?.state === "active";
  }

  #member(name: string): Member | undefined {
    return this.#members.find((member) => member.name === name);
  }

  #left(member: Member): void {
    member.state = "left";
    member.resting = false;
    this.rows = this.rows.filter(({ owner }) => owner !== member.name);
    this.#attachments = this.#attachments.filter(({ name }) => name !== member.name);
  }

  #store(row: OracleRow): void {
    this.rows = [...this.rows.filter(({ key }) => key !== row.key), row];
  }
}

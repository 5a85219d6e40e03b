/** What happens next: a binary heap by time, first in first out at equal times, so that a seed replays exactly. */
export class EventHeap<E> {
  readonly #at: number[] = [];
  readonly #order: number[] = [];
  readonly #events: E[] = [];
  #next = 0;

  get size(): number {
    return this.#events.length;
  }

  get nextAt(): number | undefined {
    return this.#at[0];
  }

  push(at: number, event: E): void {
    const order = this.#next++;
    let i = this.#events.length;
    this.#at.push(at);
    this.#order.push(order);
    this.#events.push(event);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!this.#before(at, order, parent)) break;
      this.#move(parent, i);
      i = parent;
    }
    this.#put(i, at, order, event);
  }

  /** The event at `nextAt`. */
  pop(): E | undefined {
    const top = this.#events[0];
    const at = this.#at.pop();
    const order = this.#order.pop();
    const event = this.#events.pop();
    if (at === undefined || order === undefined || event === undefined || this.#events.length === 0)
      return top;
    const size = this.#events.length;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= size) break;
      if (child + 1 < size && this.#before(this.#at[child + 1]!, this.#order[child + 1]!, child)) child++;
      if (this.#before(at, order, child)) break;
      this.#move(child, i);
      i = child;
    }
    this.#put(i, at, order, event);
    return top;
  }

  #before(at: number, order: number, index: number): boolean {
    const other = this.#at[index]!;
    return at < other || (at === other && order < this.#order[index]!);
  }

  #move(from: number, to: number): void {
    this.#put(to, this.#at[from]!, this.#order[from]!, this.#events[from]!);
  }

  #put(i: number, at: number, order: number, event: E): void {
    this.#at[i] = at;
    this.#order[i] = order;
    this.#events[i] = event;
  }
}

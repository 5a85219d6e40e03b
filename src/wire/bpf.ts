/**
 * BPF instructions: 8 bytes each: opcode 1, destination register 4 bits, source register 4 bits, jump or memory offset
 * 2, immediate 4, in host order (every machine we run on is little endian). A 64-bit immediate takes two.
 * Documentation/bpf/standardization/instruction-set.rst
 *
 * Own code, because programs as small as ours are not worth a compiler that would have to be there at run time.
 */

/** r0 … r10; r1–r5 carry arguments and are lost in a call, r10 is the frame. */
export type Register = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10;
/** Bytes of a load or a store. */
export type Width = 1 | 2 | 4 | 8;
export type Operand = Register | { readonly value: number };
export type Comparison = keyof typeof COMPARISON;
export type Arithmetic = keyof typeof ARITHMETIC;

/** Helper functions by number, include/uapi/linux/bpf.h. */
export const BPF_HELPER = {
  mapLookup: 1,
  random: 7,
  storeBytes: 9,
  redirect: 23,
  hashRecalculate: 34,
  adjustRoom: 50,
  redirectNeighbor: 152,
  redirectPeer: 155,
  coarseTime: 160,
} as const;

/** Offsets in `struct __sk_buff`; all of 4 bytes. */
export const SKB = {
  length: 0,
  packetType: 4,
  mark: 8,
  protocol: 16,
  vlanPresent: 20,
  data: 76,
  dataEnd: 80,
  gsoSize: 176,
} as const;

const COMPARISON = { "=": 0x10, "≠": 0x50, ">": 0x20, "≥": 0x30, "&": 0x40 } as const;
const ARITHMETIC = {
  "+": 0x00,
  "−": 0x10,
  "×": 0x20,
  "|": 0x40,
  "&": 0x50,
  "<<": 0x60,
  ">>": 0x70,
  "^": 0xa0,
} as const;
const WIDTH: Readonly<Record<Width, number>> = { 1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18 };
const CLASS = { load: 0x61, store: 0x63, storeValue: 0x62, alu: 0x07, jump: 0x05 } as const;
const FROM_REGISTER = 0x08;
const MOVE = 0xb0;
const MOVE_32 = 0xbc;
const TO_BIG_ENDIAN = 0xdc;
const CALL = 0x85;
const EXIT = 0x95;
const LOAD_64 = 0x18;
const PSEUDO_MAP = 1;

interface Instruction {
  readonly code: number;
  readonly to: Register;
  readonly from: number;
  readonly offset: number | string;
  readonly immediate: number;
}

/** Writes one program, top down; jumps name labels that may come later. */
export class BpfWriter {
  readonly #instructions: Instruction[] = [];
  readonly #labels = new Map<string, number>();

  label(name: string): void {
    this.#labels.set(name, this.#instructions.length);
  }

  move(to: Register, operand: Operand): void {
    this.#emit(CLASS.alu | MOVE, to, operand);
  }

  /** The lower half; the upper half becomes zero. */
  moveLower(to: Register, from: Register): void {
    this.#push({ code: MOVE_32, to, from, offset: 0, immediate: 0 });
  }

  /** `value` has up to 64 bits. */
  moveWide(to: Register, value: bigint): void {
    this.#wide(to, 0, value);
  }

  /** The map behind a descriptor. */
  moveMap(to: Register, mapFd: number): void {
    this.#wide(to, PSEUDO_MAP, BigInt(mapFd));
  }

  /** 64 bits wide, unsigned. */
  compute(to: Register, operator: Arithmetic, operand: Operand): void {
    this.#emit(CLASS.alu | ARITHMETIC[operator], to, operand);
  }

  /** The lowest bits, from host to network order. */
  toNetworkOrder(to: Register, bits: 16 | 32): void {
    this.#push({ code: TO_BIG_ENDIAN, to, from: 0, offset: 0, immediate: bits });
  }

  load(width: Width, to: Register, from: Register, offset: number): void {
    this.#push({ code: CLASS.load | WIDTH[width], to, from, offset, immediate: 0 });
  }

  store(width: Width, to: Register, offset: number, operand: Operand): void {
    if (typeof operand === "number")
      this.#push({ code: CLASS.store | WIDTH[width], to, from: operand, offset, immediate: 0 });
    else this.#push({ code: CLASS.storeValue | WIDTH[width], to, from: 0, offset, immediate: operand.value });
  }

  /** `&` jumps when any of the bits is set. */
  jumpIf(register: Register, comparison: Comparison, operand: Operand, label: string): void {
    this.#emit(CLASS.jump | COMPARISON[comparison], register, operand, label);
  }

  jump(label: string): void {
    this.#push({ code: CLASS.jump, to: 0, from: 0, offset: label, immediate: 0 });
  }

  /** Arguments are in r1 … r5, the result comes in r0. */
  call(helper: number): void {
    this.#push({ code: CALL, to: 0, from: 0, offset: 0, immediate: helper });
  }

  /** With what is in r0. */
  exit(): void {
    this.#push({ code: EXIT, to: 0, from: 0, offset: 0, immediate: 0 });
  }

  finish(): Uint8Array {
    const bytes = new Uint8Array(8 * this.#instructions.length);
    const view = new DataView(bytes.buffer);
    this.#instructions.forEach(({ code, to, from, offset, immediate }, index) => {
      view.setUint8(8 * index, code);
      view.setUint8(8 * index + 1, to | (from << 4));
      view.setInt16(8 * index + 2, typeof offset === "string" ? this.#distance(index, offset) : offset, true);
      view.setInt32(8 * index + 4, immediate, true);
    });
    return bytes;
  }

  #distance(index: number, label: string): number {
    const target = this.#labels.get(label);
    if (target === undefined) throw new Error(`a BPF program jumps to ${label}, which is not there`);
    return target - index - 1;
  }

  #emit(code: number, to: Register, operand: Operand, offset: number | string = 0): void {
    if (typeof operand === "number")
      this.#push({ code: code | FROM_REGISTER, to, from: operand, offset, immediate: 0 });
    else this.#push({ code, to, from: 0, offset, immediate: operand.value });
  }

  #wide(to: Register, from: number, value: bigint): void {
    this.#push({ code: LOAD_64, to, from, offset: 0, immediate: Number(BigInt.asIntN(32, value)) });
    this.#push({ code: 0, to: 0, from: 0, offset: 0, immediate: Number(BigInt.asIntN(32, value >> 32n)) });
  }

  #push(instruction: Instruction): void {
    this.#instructions.push(instruction);
  }
}

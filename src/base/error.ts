/**
 * A failure an operator can act on. `code` is stable and grep-able; the message says what was tried,
 * on what, what the kernel or peer said and what to do; `cause` keeps the rest.
 */
export class NetError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: { readonly cause?: unknown }) {
    super(message, options);
    this.name = "NetError";
    this.code = code;
  }
}

/** Bytes or a text that are not a valid `format`. The only error a decoder throws. */
export class DecodeError extends Error {
  readonly format: string;
  /** Byte offset in the input where decoding stopped; undefined when it is the whole that does not fit. */
  readonly offset: number | undefined;

  constructor(format: string, offset: number | undefined, detail: string) {
    super(offset === undefined ? `${format} ${detail}` : `${format} at byte ${offset}: ${detail}`);
    this.name = "DecodeError";
    this.format = format;
    this.offset = offset;
  }
}

/** The one-line text of anything thrown. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The `code` of a NetError or of a Node system error, else undefined. */
export function errorCode(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}

import { pino, type Logger } from "pino";
import type { LogLevel } from "./config.ts";

export type { Logger } from "pino";

/** Logs to standard error: one JSON object a line, or `12:03:04 WARN message key=value` for people. */
export function createLogger(level: LogLevel, format: "pretty" | "json"): Logger {
  const destination = format === "json" ? pino.destination({ fd: 2, sync: true }) : { write: writePretty };
  return pino(
    { level, base: null, timestamp: pino.stdTimeFunctions.isoTime, messageKey: "message" },
    destination,
  );
}

const LEVEL_NAMES: Readonly<Record<number, string>> = {
  10: "TRACE",
  20: "DEBUG",
  30: "INFO",
  40: "WARN",
  50: "ERROR",
  60: "FATAL",
};

function writePretty(line: string): void {
  const record: unknown = JSON.parse(line);
  if (typeof record !== "object" || record === null) return;
  const { level, time, message, ...fields } = record as Record<string, unknown>;
  const detail = Object.entries(fields).map(
    ([key, value]) => ` ${key}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  );
  const name = LEVEL_NAMES[Number(level)] ?? "INFO";
  process.stderr.write(
    `${String(time).slice(11, 19)} ${name.padEnd(5)} ${String(message ?? "")}${detail.join("")}\n`,
  );
}

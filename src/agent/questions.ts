import { z, ZodError } from "zod";
import { NetError } from "../base/error.ts";

/** What another netagent asked, as it came: untrusted. Throws what it refuses. */
export type PeerAnswer = (body: unknown) => unknown;

const envelope = z.object({ method: z.string() });

/** Another netagent's questions, by method; a refusal is a rejection with a NetError. */
export function questionsOf(
  answers: Readonly<Record<string, PeerAnswer>>,
): (body: unknown) => Promise<unknown> {
  return async (body) => {
    const asked = envelope.safeParse(body);
    const answer =
      asked.success && Object.hasOwn(answers, asked.data.method) ? answers[asked.data.method] : undefined;
    if (answer === undefined)
      throw new NetError("unknown-question", "this netagent does not understand the question");
    try {
      return await answer(body);
    } catch (cause) {
      if (!(cause instanceof ZodError)) throw cause;
      throw new NetError("bad-question", `malformed: ${cause.issues[0]?.message ?? "invalid"}`, { cause });
    }
  };
}

// Enqueues GPTFlow's jobs from Node, and waits for their results. It needs no package.
//
// `send` sends one command to Redis or Valkey and gives its reply:
//
//   node-redis   const send = (...args) => client.sendCommand(args)
//   ioredis      const send = (...args) => client.call(...args)
//   neither      resp.mjs

import { createHash, createHmac, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";

const SCRIPT = readFileSync(new URL("../enqueue.lua", import.meta.url), "utf8");
const HASH = createHash("sha1").update(SCRIPT).digest("hex"); // as Redis names scripts
const INLINE = 64 * 1024; // bytes above which an input is kept beside its job

/** Too much waits already, or the server's memory is nearly used up. */
export class QueueFull extends Error {
  constructor(what, seconds) {
    super(`The queue takes no more (${what}); come back in ${seconds} seconds.`);
    this.retryAfter = seconds;
  }
}

export class GPTFlow {
  /** `app` and `signingKey` as the workers have them. */
  constructor(send, { app = "gptflow", signingKey } = {}) {
    this.send = send;
    this.prefix = `gf:{${app}}:`;
    this.signingKey = signingKey;
  }

  /**
   * Enqueue a job and give its id. It may be called again after an error of the connection: the
   * same `id`, or the same `key` for the same tenant and task, is the same job.
   */
  async submit(task, input, { id = newId(), class: jobClass = "standard", tenant = "default",
    key, deadline, notBefore, seed, stream, trace } = {}) {
    const envelope = { v: 1, id, task, class: jobClass, tenant, key, deadline, seed, stream, trace,
      not_before: notBefore };
    const text = JSON.stringify(input);
    const aside = Buffer.byteLength(text) > INLINE ? text : undefined;
    if (aside === undefined) {
      envelope.input = input;
    } else {
      envelope.input_ref = `${this.prefix}input:${id}`;
      envelope.input_sha256 = createHash("sha256").update(text).digest("hex");
    }
    const wire = JSON.stringify(envelope); // what is undefined is left out
    const options = { key, deadline, not_before: notBefore, input: aside,
      sig: this.signingKey && sign(wire, this.signingKey) };
    const given = Object.entries(options).filter(([, value]) => value !== undefined).flat();
    const [verdict, ...rest] = await this.#enqueue(
      `${this.prefix}job:${id}`, this.prefix, id, wire, jobClass, tenant, task, ...given);
    if (verdict === "accepted" || verdict === "known") return rest[0];
    if (verdict === "invalid") throw new TypeError(`The job's ${rest[0]} will not do.`);
    throw new QueueFull(verdict === "full" ? rest[0] : "memory", Number(rest[1]));
  }

  /** The result of a job: {state, output, error, ...}. Gives undefined if it does not end in time. */
  async result(id, seconds = 60) {
    const stream = `${this.prefix}s:${id}`;
    const until = Date.now() + 1000 * seconds;
    for (let last = "0"; ;) {
      const text = await this.send("HGET", `${this.prefix}job:${id}`, "result");
      if (text) return JSON.parse(text);
      const left = until - Date.now();
      if (left <= 0) return undefined;
      // The stream's last entry says that the job has ended; before it, the text, if asked for.
      const wait = String(Math.max(1, Math.min(2000, left)));
      const reply = await this.send("XREAD", "COUNT", "500", "BLOCK", wait, "STREAMS", stream, last);
      last = reply?.[0]?.[1]?.at(-1)?.[0] ?? last;
    }
  }

  async #enqueue(key, ...args) {
    const command = (name, script) => this.send(name, script, "1", key, ...args.map(String));
    try {
      return await command("EVALSHA", HASH);
    } catch (error) {
      if (!String(error.message).includes("NOSCRIPT")) throw error;
      await this.send("SCRIPT", "LOAD", SCRIPT);
      return command("EVALSHA", HASH);
    }
  }
}

/** `job_` and a UUID of version 7: ids sort by the time they were made. */
export function newId() {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  const hex = bytes.toString("hex");
  return "job_" + [[0, 8], [8, 12], [12, 16], [16, 20], [20, 32]]
    .map(([from, to]) => hex.slice(from, to)).join("-");
}

function sign(wire, key) {
  return "v1=" + createHmac("sha256", key).update(wire).digest("hex");
}

/**
 * A job as a bare Celery message, for `LPUSH gf:{APP}:gf.CLASS`. A worker records it when it takes
 * it: until then nothing keeps it from being lost, no limit holds it back, and nobody can cancel it.
 */
export function celeryMessage(envelope, signingKey) {
  const wire = JSON.stringify(envelope);
  const args = signingKey ? [wire, sign(wire, signingKey)] : [envelope];
  const embed = { callbacks: null, errbacks: null, chain: null, chord: null };
  return JSON.stringify({
    body: Buffer.from(JSON.stringify([args, {}, embed])).toString("base64"),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    headers: { lang: "js", task: "gptflow.run", id: envelope.id, root_id: envelope.id,
      parent_id: null, group: null, shadow: envelope.task, argsrepr: `('${envelope.id}',)`,
      kwargsrepr: "{}", retries: 0, timelimit: [null, null], ignore_result: true },
    properties: { correlation_id: envelope.id, delivery_mode: 2, priority: 0,
      delivery_info: { exchange: "", routing_key: `gf.${envelope.class ?? "standard"}` },
      body_encoding: "base64", delivery_tag: newId() },
  });
}

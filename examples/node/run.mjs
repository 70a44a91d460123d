// node run.mjs TASK INPUT [--key KEY] [--class CLASS] [--raw]
//
// Runs a task on JSON input and prints its result. GPTFLOW_REDIS_URL, GPTFLOW_APP and
// GPTFLOW_SIGNING_KEY are those of the workers. --raw sends a bare Celery message instead.

import { parseArgs } from "node:util";
import { GPTFlow, celeryMessage, newId } from "./gptflow.mjs";
import { connect } from "./resp.mjs";

const { values, positionals: [task, text] } = parseArgs({
  allowPositionals: true,
  options: { key: { type: "string" }, class: { type: "string" }, raw: { type: "boolean" } },
});
if (!task || !text) {
  console.error("usage: node run.mjs TASK INPUT [--key KEY] [--class CLASS] [--raw]");
  process.exit(2);
}
const { GPTFLOW_REDIS_URL: url = "redis://127.0.0.1:6379/0", GPTFLOW_APP: app,
  GPTFLOW_SIGNING_KEY: signingKey } = process.env;
const send = await connect(url);
try {
  const flow = new GPTFlow(send, { app, signingKey });
  const input = JSON.parse(text);
  let id;
  if (values.raw) {
    const envelope = { v: 1, id: newId(), task, input, class: values.class, key: values.key };
    id = envelope.id;
    await send("LPUSH", `${flow.prefix}gf.${values.class ?? "standard"}`,
      celeryMessage(envelope, signingKey));
  } else {
    id = await flow.submit(task, input, { key: values.key, class: values.class });
  }
  const result = await flow.result(id, 60);
  console.log(JSON.stringify(result ?? null));
  process.exitCode = result?.state === "done" ? 0 : 1;
} finally {
  send.close();
}

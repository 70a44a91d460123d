// A small client of Redis or Valkey (protocol RESP2), so that the example needs no package. In a
// program, use node-redis or ioredis: they reconnect, and share a connection among many.

import net from "node:net";
import tls from "node:tls";

/** Connect to redis://, rediss:// or unix://. Gives `send`, with `send.close()`. */
export async function connect(url) {
  const at = new URL(url);
  const secret = decodeURIComponent(at.password);
  const socket = at.protocol === "unix:"
    ? net.connect(at.pathname)
    : at.protocol === "rediss:"
      ? tls.connect({ host: at.hostname, port: Number(at.port || 6379), servername: at.hostname })
      : net.connect({ host: at.hostname, port: Number(at.port || 6379) });
  const waiting = [];
  let data = Buffer.alloc(0);
  const fail = (error) => {
    while (waiting.length) waiting.shift().reject(error);
  };
  socket.on("error", fail);
  socket.on("close", () => fail(new Error("The connection was closed.")));
  socket.on("data", (chunk) => {
    data = Buffer.concat([data, chunk]);
    for (let read; waiting.length && (read = parse(data, 0)); data = data.subarray(read.end)) {
      const { resolve, reject } = waiting.shift();
      read.value instanceof Error ? reject(read.value) : resolve(read.value);
    }
  });
  const send = (...args) => new Promise((resolve, reject) => {
    if (socket.destroyed) return reject(new Error("The connection was closed."));
    waiting.push({ resolve, reject });
    const parts = args.map((arg) => `$${Buffer.byteLength(arg)}\r\n${arg}\r\n`);
    socket.write(`*${args.length}\r\n${parts.join("")}`);
  });
  send.close = () => socket.end();
  if (secret) await send(...["AUTH", decodeURIComponent(at.username), secret].filter(Boolean));
  const database = at.searchParams.get("db") ?? (at.protocol === "unix:" ? "" : at.pathname.slice(1));
  if (database && database !== "0") await send("SELECT", database);
  return send;
}

/** The reply at `start` and where it ends; undefined while it is not whole. */
function parse(data, start) {
  const eol = data.indexOf("\r\n", start);
  if (eol < 0) return undefined;
  const line = data.toString("utf8", start + 1, eol);
  const next = eol + 2;
  switch (String.fromCharCode(data[start])) {
    case "+": return { value: line, end: next };
    case "-": return { value: new Error(line), end: next };
    case ":": return { value: Number(line), end: next };
    case "$": {
      const size = Number(line);
      if (size < 0) return { value: null, end: next };
      if (data.length < next + size + 2) return undefined;
      return { value: data.toString("utf8", next, next + size), end: next + size + 2 };
    }
    case "*": {
      if (Number(line) < 0) return { value: null, end: next };
      const value = [];
      let end = next;
      for (let left = Number(line); left > 0; left -= 1) {
        const read = parse(data, end);
        if (!read) return undefined;
        value.push(read.value);
        end = read.end;
      }
      return { value, end };
    }
    default: throw new Error("The server speaks another protocol.");
  }
}

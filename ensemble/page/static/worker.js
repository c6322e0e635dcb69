// The models run here, beside the page, so that it answers while they work. Started from a blob: URL by page.js, so that
// the page's Content-Security-Policy holds for it too.

import { decode, Unreadable } from "./decode.js";
import * as ort from "./ort.js";

const BASE = new URL(".", import.meta.url);
const session = { started: null, facts: null };

self.addEventListener("message", async ({ data }) => {
  try {
    if (data.kind === "load") await load(data.facts);
    else await look(data.id, new Uint8Array(data.bytes));
  } catch (error) {
    const known = error instanceof Unreadable;
    const why = known ? error.why : data.kind === "load" ? "load" : isMemory(error) ? "memory" : "run";
    const detail = known ? error.facts : { message: String(error?.message ?? error) };
    self.postMessage({ kind: "problem", id: data.id, why, detail });
  }
});

async function load(facts) {
  const done = {};
  const total = facts.files.model.bytes + facts.files.runtime.bytes;
  const report = (name) => (bytes) => {
    done[name] = bytes;
    self.postMessage({ kind: "progress", done: Math.min(total, (done.model ?? 0) + (done.runtime ?? 0)), total });
  };
  const [model, runtime] = await Promise.all([
    fetchBytes(facts.files.model, report("model")),
    fetchBytes(facts.files.runtime, report("runtime")),
  ]);
  self.postMessage({ kind: "progress", done: total, total });
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1; // several need headers that a server of static files does not send
  ort.env.wasm.proxy = false;
  ort.env.wasm.wasmBinary = await unzipped(runtime);
  session.started = await ort.InferenceSession.create(model, {
    executionProviders: ["wasm"],
    logSeverityLevel: 3, // errors: warnings about a graph are of no use on a page
  });
  session.facts = facts;
  self.postMessage({ kind: "ready" });
}

async function fetchBytes({ name, bytes }, report) {
  const answer = await fetch(new URL(name, BASE));
  if (!answer.ok) throw new Error(`${name}: the server answered ${answer.status}`);
  const parts = [];
  let length = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
    report(length);
  }
  const whole = new Uint8Array(await new Blob(parts).arrayBuffer());
  // a server that unpacks .gz files itself sends more bytes
  if (whole.length < bytes) throw new Error(`${name}: ${whole.length} of ${bytes} bytes arrived`);
  return whole;
}

async function unzipped(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes.buffer; // the server has unpacked it
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function look(id, bytes) {
  const { width, height, pixels, preview } = await decode(bytes, session.facts.maxPixels);
  const began = performance.now();
  const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const found = await session.started.run({ images });
  const seconds = (performance.now() - began) / 1000;
  const values = (name) => (name in found ? Float32Array.from(found[name].data) : null);
  const answer = {
    kind: "answer",
    id,
    width,
    height,
    preview,
    seconds,
    chosen: Number(found.class.data[0]),
    probabilities: values("probabilities"),
    members: values("members"),
    applies: "applies" in found ? Array.from(found.applies.data, Boolean) : null,
    maps: "maps" in found ? { values: values("maps"), shape: found.maps.dims } : null,
  };
  for (const tensor of Object.values(found)) tensor.dispose();
  images.dispose();
  self.postMessage(answer, [preview]);
}

function isMemory(error) {
  return error instanceof RangeError || /memory|allocat/i.test(String(error?.message ?? error));
}

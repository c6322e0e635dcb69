// The page: take a photograph, hand it to worker.js, show what the ensemble answers.

import { positionOfMap, drawMap } from "./map.js";

const SENTENCES = {
  empty: () => "The file is empty.",
  cut: () => "The photograph ends before its last pixel: it is damaged or was not copied completely.",
  unreadable: () => "The browser cannot read it: a folder, or a file that is no longer there.",
  undecodable: ({ type }) =>
    `This browser cannot read the file${type ? `, which is ${type}` : ""}. It reads JPEG, PNG, WebP, GIF, BMP and AVIF images.`,
  deep: () =>
    "The picture has 16 bits per color and uses the lowest part of them: it may hold 10 to 14 bits, which a browser shows " +
    "too dark. Scale it to 8 bits and try again.",
  huge: ({ width, height }) =>
    `The photograph has ${megapixels(width * height)} million pixels (${width} × ${height}), more than the limit of ` +
    `${megapixels(facts.maxPixels)} million. Make it smaller and try again.`,
  memory: () => "The browser has too little memory for this photograph. Make it smaller and try again.",
  run: ({ message }) => `The models failed on this photograph: ${message}`,
  load: ({ message }) => `The models could not be loaded: ${message}. Reload the page to try again.`,
  camera: ({ message }) => `The camera cannot be used: ${message} Choose a photograph instead.`,
  nothing: () => "There was no file in what was dropped.",
  simd: () =>
    "This browser has no WebAssembly SIMD, which the models need. Current versions of Chrome, Edge, Firefox and Safari have it.",
  old: () =>
    "This browser lacks a feature that the page needs (OffscreenCanvas, DecompressionStream or module workers). Current " +
    "versions of Chrome, Edge, Firefox and Safari have them.",
};
const SHOWN = 6; // bars before the others are folded away

const at = (id) => document.getElementById(id);
let facts = null;
let worker = null;
let ready = false;
let waiting = null; // a photograph that was chosen before the models were loaded
let current = 0; // answers of photographs before this one are ignored
let name = ""; // of the current photograph
let shown = null; // the last answer

function start() {
  for (const button of [at("choose"), at("camera")]) button.disabled = false;
  at("choose").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", (event) => takeFiles(event.target));
  at("capture").addEventListener("change", (event) => takeFiles(event.target));
  at("camera").addEventListener("click", openCamera);
  at("evidence").addEventListener("click", toggleEvidence);
  at("camera").hidden = !canCapture() && navigator.mediaDevices?.getUserMedia === undefined;
  listenForDrops();
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length > 0) take(event.clipboardData.files);
  });
  const lacks = missingFeature();
  if (lacks === null) startWorker();
  else showProblem(lacks);
}

// a function of one SIMD instruction (i8x16.popcnt), as in the package wasm-feature-detect
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

function missingFeature() {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(Uint8Array.from(SIMD))) return "simd";
  const needed = ["OffscreenCanvas", "DecompressionStream", "createImageBitmap", "Worker"];
  return needed.every((name) => name in globalThis) ? null : "old";
}

function startWorker() {
  const address = new URL("worker.js", import.meta.url).href;
  const script = new Blob([`import ${JSON.stringify(address)};`], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(script), { type: "module" });
  worker.addEventListener("message", ({ data }) => RECEIVED[data.kind](data));
  worker.addEventListener("error", (event) => {
    showProblem("load", { message: event.message || "the worker did not start" });
  });
  worker.postMessage({ kind: "load", facts });
}

const RECEIVED = {
  progress: ({ done, total }) => {
    at("progress").max = total;
    at("progress").value = done;
    at("loading").textContent =
      done < total ? `Loading the models: ${megabytes(done)} of ${megabytes(total)} MB` : "Starting the models";
  },
  ready: () => {
    ready = true;
    at("load").hidden = true;
    document.body.dataset.state = "ready";
    say(waiting === null ? "Ready for a photograph." : "");
    if (waiting !== null) look(waiting);
    waiting = null;
  },
  answer: (answer) => {
    if (answer.id === current) showAnswer(answer);
  },
  problem: ({ id, why, detail }) => {
    if (id === undefined || id === current) showProblem(why, detail);
  },
};

function takeFiles(input) {
  if (input.files.length > 0) take(input.files);
  input.value = ""; // so that choosing the same file again is noticed
}

function take(files) {
  if (document.body.dataset.state === "failed") return;
  if (files.length === 0) {
    showProblem("nothing");
    return;
  }
  at("note").textContent = files.length > 1 ? `${files.length} files were given; the first is shown.` : "";
  if (ready) {
    look(files[0]);
  } else {
    waiting = files[0];
    say("The answer comes once the models are loaded.");
  }
}

async function look(file) {
  const id = ++current;
  name = file.name ?? "";
  document.body.dataset.state = "working";
  at("problem").hidden = true;
  say("The models are looking at the photograph.");
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    showProblem("unreadable");
    return;
  }
  worker.postMessage({ kind: "look", id, bytes }, [bytes]);
}

function showAnswer(answer) {
  shown = answer;
  document.body.dataset.state = "answered";
  drawPicture(answer);
  const several = answer.applies !== null;
  const chosen = several ? facts.labels.map((_, i) => i).filter((i) => answer.applies[i]) : [answer.chosen];
  const words = several
    ? chosen.map((i) => facts.labels[i]).join(", ") || "None of the labels applies"
    : facts.labels[answer.chosen];
  showWords(several || facts.axes.length < 2 ? null : valuesOf(answer.chosen), words, answer.probabilities);
  const value = percent(answer.probabilities[answer.chosen]);
  const share = several ? "" : facts.activation === "softmax" ? `${value} of the vote` : `probability ${value}`;
  at("share").textContent = share;
  at("rule").textContent = whyChosen(answer, several);
  at("rule").hidden = at("rule").textContent === "";
  showVote(answer.probabilities, chosen);
  showMembers(answer, several);
  at("time").textContent = `${answer.width} × ${answer.height} pixels, ${answer.seconds.toFixed(2)} seconds.`;
  at("result").hidden = false;
  at("intro").hidden = true;
  say(`${words}${share ? `, ${share}` : ""}. ${at("rule").textContent}`);
}

/** Return the value of each axis for a class; the last axis changes fastest. */
function valuesOf(chosen) {
  const values = [];
  let rest = chosen;
  for (const axis of [...facts.axes].reverse()) {
    values.unshift({ axis: axis.name, value: axis.values[rest % axis.values.length] });
    rest = Math.floor(rest / axis.values.length);
  }
  return values;
}

/** Return the share of the vote that one value of an axis has, over all values of the other axes. */
function shareOf(place, value, probabilities) {
  return probabilities.reduce((sum, p, i) => (valuesOf(i)[place].value === value ? sum + p : sum), 0);
}

function showWords(values, words, probabilities) {
  const parts =
    values === null
      ? [element("span", "word", words)]
      : values.map(({ axis, value }, place) => {
          const part = element("span", "word");
          const share = percent(shareOf(place, value, probabilities));
          part.append(element("small", "", axis), element("span", "", value), element("small", "", share));
          return part;
        });
  at("answer").replaceChildren(...parts.flatMap((part, i) => (i === 0 ? [part] : [" ", part])));
}

/** Say why the answer is not the class with the highest probability, where it is not. */
function whyChosen(answer, several) {
  if (several) return "";
  const highest = answer.probabilities.indexOf(Math.max(...answer.probabilities));
  if (answer.probabilities[highest] <= answer.probabilities[answer.chosen]) return "";
  return `${facts.labels[highest]} has the larger share, but the recipe decides by the rule ${facts.rule}.`;
}

function showVote(probabilities, chosen) {
  const order = facts.labels.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  const bars = order.map((i) => bar(facts.labels[i], probabilities[i], chosen.includes(i)));
  at("vote").replaceChildren(...bars.slice(0, SHOWN));
  at("others").hidden = order.length <= SHOWN;
  at("more").replaceChildren(...bars.slice(SHOWN));
  const rest = order.slice(SHOWN).reduce((sum, i) => sum + probabilities[i], 0);
  const all = facts.activation === "softmax" ? `, ${percent(rest)} together` : "";
  at("others-summary").textContent = `The other ${order.length - SHOWN}${all}`;
}

function showMembers(answer, several) {
  const count = facts.labels.length;
  const items = facts.members.map((member, m) => {
    const own = answer.members.subarray(m * count, (m + 1) * count);
    const best = own.indexOf(Math.max(...own));
    const item = element("li", "member");
    const head = element("p", "member-head");
    head.append(element("span", "member-name", member.name), element("span", "muted", `${percent(member.share)} of the weight`));
    const agrees = several ? answer.applies[best] : best === answer.chosen;
    const bars = element("ul", "bars");
    bars.append(bar(facts.labels[best], own[best], agrees));
    if (!agrees && !several) bars.append(bar(facts.labels[answer.chosen], own[answer.chosen], true));
    item.append(head, element("p", "says", agrees ? "Agrees with the answer." : "Has another first choice."), bars);
    return item;
  });
  const order = items.map((_, m) => m).sort((a, b) => facts.members[b].share - facts.members[a].share);
  at("members").replaceChildren(...order.map((m) => items[m]));
}

function bar(name, value, chosen) {
  const item = element("li", chosen ? "bar chosen" : "bar");
  const track = element("span", "track");
  const fill = element("span", "fill");
  fill.style.width = `${Math.max(0, Math.min(1, value)) * 100}%`;
  track.setAttribute("aria-hidden", "true");
  track.append(fill);
  item.append(element("span", "label", name), element("span", "value", percent(value)), track);
  if (chosen) item.append(element("span", "hidden-text", " (the answer)"));
  return item;
}

function drawPicture({ preview, width, height, maps }) {
  const picture = at("picture");
  [picture.width, picture.height] = [preview.width, preview.height];
  picture.getContext("2d").drawImage(preview, 0, 0);
  preview.close();
  picture.setAttribute("aria-label", `The photograph ${name}`);
  at("name").textContent = name;
  at("frame").hidden = false;
  at("invitation").hidden = true;
  at("evidence").hidden = facts.maps === null || maps === null;
  drawEvidence({ width, height, maps });
}

function drawEvidence({ width, height, maps }) {
  const on = at("evidence").getAttribute("aria-pressed") === "true" && !at("evidence").hidden;
  at("heat").hidden = !on;
  at("evidence-note").hidden = !on;
  if (!on) return;
  const place = positionOfMap(facts.maps.preprocess, width, height);
  const visible = drawMap(at("heat"), maps, shown.chosen, place, at("picture"));
  at("evidence-note").textContent = visible
    ? `The brighter a place, the more it speaks for ${facts.labels[shown.chosen]} in the view of ${facts.maps.member}.`
    : `${facts.maps.member} finds nothing that speaks for ${facts.labels[shown.chosen]}.`;
}

function toggleEvidence() {
  const button = at("evidence");
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  drawEvidence(shown);
}

function listenForDrops() {
  const zone = at("drop");
  let depth = 0; // a drag enters and leaves the elements inside the zone too
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    zone.classList.toggle("over", depth > 0);
  };
  // the whole window takes drops: a file that misses the zone must not replace the page
  window.addEventListener("dragover", (event) => event.preventDefault());
  window.addEventListener("dragenter", () => mark(1));
  window.addEventListener("dragleave", () => mark(-1));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    take(event.dataTransfer.files);
  });
}

/** Return if the device has a camera application of its own, as phones do. */
function canCapture() {
  return matchMedia("(pointer: coarse)").matches;
}

async function openCamera() {
  if (canCapture()) {
    at("capture").click();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    showProblem("camera", { message: error.message.replace(/\.?$/, ".") });
    return;
  }
  const [video, dialog] = [at("video"), at("camera-dialog")];
  video.srcObject = stream;
  await video.play();
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  for (const track of stream.getTracks()) track.stop();
  video.srcObject = null;
  if (dialog.returnValue === "take") {
    take([new File([await canvas.convertToBlob({ type: "image/png" })], "from the camera")]);
  }
}

/** Say what is wrong, in place of any earlier answer: an answer below a sentence would seem to belong to it. */
function showProblem(why, detail = {}) {
  const fatal = ["load", "simd", "old"].includes(why);
  if (fatal) {
    at("load").hidden = true;
    for (const button of [at("choose"), at("camera")]) button.disabled = true;
  }
  if (ready || fatal) document.body.dataset.state = fatal ? "failed" : "ready";
  shown = null;
  for (const id of ["result", "frame", "evidence", "evidence-note"]) at(id).hidden = true;
  for (const id of ["intro", "invitation"]) at(id).hidden = false;
  at("name").textContent = "";
  const ofFile = ["empty", "cut", "undecodable", "deep", "huge", "memory", "run", "unreadable"].includes(why) && name !== "";
  at("problem").textContent = (ofFile ? `${name}: ` : "") + SENTENCES[why](detail);
  at("problem").hidden = false;
  say("");
}

function say(text) {
  at("status").textContent = text.trim();
}

function element(tag, kind = "", text = "") {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}

function percent(value) {
  const hundredths = value * 100;
  if (hundredths > 0 && hundredths < 0.1) return "under 0.1 %";
  return `${hundredths.toFixed(1)} %`;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

function megapixels(pixels) {
  return (pixels / 1e6).toFixed(1).replace(/\.0$/, "");
}

try {
  facts = await (await fetch("facts.json")).json();
  start();
} catch (error) {
  showProblem("load", { message: String(error?.message ?? error) });
}

// A picture that a new one starts from: chosen or dropped, sent at once, and painted over where it
// is to be made anew. Gives the form what its job says of it (`form.beginning`).
import { ask, complain } from "./ask.js";

const form = document.getElementById("new"), from = document.getElementById("from");
const at = (id) => document.getElementById(id);
const PAINT = "#d6402690", MOST = 1024; // pixels of a side of what is painted on

const edited = JSON.parse(form?.rest?.value ?? "{}"); // what the job said that is edited
let picture = null; // what is started from: {name, image}
let kept = ""; // the mask of a job that is edited, until another is painted
let strokes = []; // [{width, points}] in pixels of the canvas
let told = false; // has a person said how far from it?
let brush = null; // where the keys paint

async function send(blob) {
  const { sha256 } = await ask("POST /inputs", blob, blob.type || "application/octet-stream");
  return `sha256:${sha256}`;
}

async function start(file) {
  try {
    const name = await send(file);
    show(name, await createImageBitmap(file).catch(() => null));
  } catch (error) {
    complain(error);
  }
}

function show(name, image, mask = "") {
  [picture, kept, strokes, brush] = [{ name, image }, mask, [], null];
  const canvas = at("canvas"), shrink = image ? Math.min(1, MOST / Math.max(image.width, image.height)) : 1;
  canvas.hidden = !image; // what a browser cannot show can be started from all the same
  if (image) [canvas.width, canvas.height] = [image.width, image.height].map((n) => Math.max(1, Math.round(n * shrink)));
  at("source-shown").hidden = false;
  from.open = true;
  if (!at("size-own")) at("size").prepend(Object.assign(new Option("As the picture", "picture"), { id: "size-own" }));
  at("size").value = "picture";
  draw();
}

function away() {
  picture = null;
  at("source-shown").hidden = true;
  at("size-own")?.remove();
  at("size").selectedIndex = 0;
  at("source").focus();
}

// All strokes on a sheet of their own, so that where they cross is no darker.
function sheet({ width, height }, colour, ground) {
  const sheet = Object.assign(document.createElement("canvas"), { width, height });
  const pen = sheet.getContext("2d");
  if (ground) pen.fillStyle = ground, pen.fillRect(0, 0, width, height);
  pen.scale(width / at("canvas").width, height / at("canvas").height);
  Object.assign(pen, { strokeStyle: colour, lineCap: "round", lineJoin: "round" });
  for (const { width, points } of strokes) {
    pen.lineWidth = width;
    pen.beginPath();
    pen.lineTo(points[0][0] - 0.01, points[0][1]); // a line without length is not drawn
    for (const [x, y] of points) pen.lineTo(x, y);
    pen.stroke();
  }
  return sheet;
}

function draw() {
  const masked = strokes.length > 0 || kept !== "";
  at("undo").disabled = !strokes.length;
  at("clear").disabled = !masked;
  at("mask-only").disabled = !masked;
  at("kept").hidden = !kept;
  if (!told) at("strength").value = masked ? 1 : 0.6;
  at("strength-shown").textContent = at("strength").value;
  if (!picture?.image) return;
  const canvas = at("canvas"), pen = canvas.getContext("2d");
  pen.drawImage(picture.image, 0, 0, canvas.width, canvas.height);
  pen.drawImage(sheet(canvas, PAINT), 0, 0);
  if (!brush) return;
  pen.beginPath();
  pen.arc(...brush, size() / 2, 0, 7);
  for (const [colour, width] of [["#000", 4], ["#fff", 2]])
    Object.assign(pen, { strokeStyle: colour, lineWidth: width }), pen.stroke();
}

// The width of the brush, a part of the shorter side.
const size = () => (at("brush").value / 100) * Math.min(at("canvas").width, at("canvas").height);

function begin(point) {
  kept = "";
  strokes.push({ width: size(), points: [point] });
}

const place = (e) => {
  const canvas = at("canvas"), box = canvas.getBoundingClientRect();
  return [((e.clientX - box.left) * canvas.width) / box.width, ((e.clientY - box.top) * canvas.height) / box.height];
};

function listen() {
  const canvas = at("canvas");
  canvas.onpointerdown = (e) => {
    if (e.button) return;
    canvas.setPointerCapture(e.pointerId);
    brush = null;
    begin(place(e));
    draw();
  };
  canvas.onpointermove = (e) => {
    if (!canvas.hasPointerCapture(e.pointerId)) return;
    for (const each of e.getCoalescedEvents?.() ?? [e]) strokes.at(-1).points.push(place(each));
    draw();
  };
  canvas.onkeydown = (e) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (e.key === "z" && (e.ctrlKey || e.metaKey)) undo();
    else if (e.key === " ") begin(brush ?? middle());
    else if (ways[e.key]) {
      const last = brush ?? middle(), step = size() / 2;
      brush = ways[e.key].map((way, n) => Math.min(Math.max(0, last[n] + way * step), n ? canvas.height : canvas.width));
      if (e.shiftKey) begin(last), strokes.at(-1).points.push(brush);
    } else return;
    brush ??= middle();
    e.preventDefault();
    e.stopPropagation();
    draw();
  };
  canvas.onblur = () => { brush = null; draw(); };
  at("brush").oninput = draw;
  at("undo").onclick = undo;
  at("clear").onclick = () => { [strokes, kept] = [[], ""]; draw(); };
  at("away").onclick = away;
  at("strength").oninput = () => { told = true; draw(); };
  at("source").onchange = (e) => {
    if (e.target.files[0]) start(e.target.files[0]);
    e.target.value = "";
  };
  const panel = at("new-panel");
  panel.ondrop = (e) => {
    const file = e.dataTransfer.files[0];
    if (e.dataTransfer.files.length !== 1 || !file.type.startsWith("image/")) return;
    e.preventDefault();
    e.stopPropagation();
    document.body.classList.remove("over");
    start(file);
  };
}

const middle = () => [at("canvas").width / 2, at("canvas").height / 2];
function undo() { strokes.pop(); draw(); }

async function source() {
  if (!picture || from.hidden) return {}; // the chosen model may not take one
  const { mask_invert, mask_blur, mask_padding, upscale, strength } = edited;
  const said = { image: picture.name, resize: at("resize").value };
  // Without a strength a picture is only made larger.
  if (told || !upscale || strength) said.strength = +at("strength").value;
  if (strokes.length) said.mask = await send(await new Promise((done) => sheet(picture.image, "#fff", "#000").toBlob(done)));
  else if (kept) Object.assign(said, { mask: kept, mask_invert });
  if (said.mask) Object.assign(said, { mask_blur, mask_padding, mask_only: at("mask-only").checked || undefined });
  return said;
}

if (from) {
  form.beginning = source;
  listen();
  const { image, mask = "", strength, resize, mask_only } = edited, size = at("size").value;
  at("mask-only").checked = !!mask_only;
  if (strength) at("strength").value = strength, told = true;
  if (resize) at("resize").value = resize;
  if (image)
    fetch(image.startsWith("job:") ? `/jobs/${image.slice(4)}/image` : `/inputs/${image.slice(7, 71)}`)
      .then((answer) => (answer.ok ? answer.blob() : Promise.reject()))
      .then(createImageBitmap)
      .catch(() => null)
      .then((shown) => show(image.split(" ")[0], shown, mask.split(" ")[0]))
      .then(() => (at("size").value = size)); // that of the job
}

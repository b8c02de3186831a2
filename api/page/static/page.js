// The page's script. The server renders everything; this presses the API's buttons, follows
// the events, and fetches the same page again when something has changed.
import { $, $$, ask, count, make, order, sure, ticks, toast } from "./ask.js";
import { around, more } from "./gallery.js";
import * as pictures from "./pictures.js";

async function press(button) {
  const { do: line, each, ids = "", list, body, say, undo, then, go } = button.dataset;
  if (button.dataset.sure && !(await sure(button.dataset.sure, button.dataset.yes))) return;
  const some = ids.split(" ").filter(Boolean);
  const listed = list && JSON.stringify({ [list]: some });
  const act = (each ?? line).startsWith("POST /jobs/") ? order : ask;
  button.disabled = true;
  try {
    let said;
    if (each)
      for (const id of some) {
        said = await act(each.replace("{}", id));
        if (then) await ask(then, JSON.stringify({ [list]: [id] })); // pressed again, it is not made again
      }
    else said = await act(line, body ?? (then ? undefined : listed));
    if (then && !each) await ask(then, listed);
    toast(say, { undo, link: go !== undefined && said.location });
  } catch (error) {
    toast(error.message, { bad: true });
  }
  button.disabled = false;
  refresh();
}

// -- the same page, newer

const CALM = 5000; // ms between two looks while things change by themselves and nobody does anything …
const ACTIVE = 10000; // … for so long
let acted = 0;
for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => (acted = performance.now()), true);
// How long the next look waits after the one at `since`.
const calm = (since) => (performance.now() - acted < ACTIVE ? 0 : since + CALM - performance.now());
let busy = false, dated = false, due = 0, looked = 0, last = "";
document.addEventListener("stale", () => refresh());
function soon(wait = 150) {
  dated = true;
  if (!due && !document.hidden) due = setTimeout(refresh, Math.max(wait, calm(looked)));
}

async function refresh() {
  clearTimeout(due);
  due = 0;
  if (busy) return void (dated = true);
  busy = true;
  dated = false;
  const begun = (looked = performance.now());
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer) live(false);
  else if (answer.ok) {
    const text = await answer.text(); // unchanged, it came as a 304 from the browser's own store
    if (text !== last) renew(new DOMParser().parseFromString(text, "text/html"));
    last = text;
    live(true);
  }
  busy = false;
  // A slow page is fetched less often.
  if (dated) soon(Math.max(400, 3 * (performance.now() - begun)));
}

function renew(page) {
  const focused = document.activeElement?.closest("[data-row]");
  const rows = $$("[data-row]"), at = rows.indexOf(focused);
  for (const id of ["head", "main"]) morph($("#" + id), page.getElementById(id));
  document.title = page.title;
  if (focused && !focused.isConnected) {
    const next = [...rows.slice(at), ...rows.slice(0, at).reverse()].find((r) => r.isConnected);
    $("a.open", next ?? undefined)?.focus();
  }
  document.body.dataset.seen = page.body.dataset.seen;
  pictures.redraw();
  look();
}

// Make the children of `old` those of `now`. Elements with an id stay themselves, so focus,
// open details and ticked boxes outlive a change; data-keep is left alone.
function morph(old, now) {
  for (const { name, value } of [...now.attributes])
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes])
    if (name !== "open" && name !== "style" && name !== "disabled" && !now.hasAttribute(name)) old.removeAttribute(name);
  const named = new Map([...old.children].filter((e) => e.id).map((e) => [e.id, e]));
  let at = old.firstChild;
  for (const want of [...now.childNodes]) {
    let have = want.id ? named.get(want.id) : null;
    if (!have && !want.id && at && !at.id && at.nodeName === want.nodeName) have = at;
    if (!have) {
      old.insertBefore(want, at);
      continue;
    }
    if (have !== at) {
      // What has the focus must not be moved: move what lies before it instead.
      if (have.contains(document.activeElement) && have.parentNode === old)
        while (at !== have) { const gone = at; at = at.nextSibling; gone.remove(); }
      else old.insertBefore(have, at);
    }
    at = have.nextSibling;
    if (have.nodeType !== 1) {
      if (have.data !== want.data) have.data = want.data;
    } else if (!have.dataset?.keep && have.dataset?.keep !== "" && !have.isEqualNode(want)) morph(have, want);
  }
  while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
}

// -- events: one tab listens for all of them

const channel = new BroadcastChannel("steady");
let leads = false, gone = false;
channel.onmessage = ({ data }) => hear(data);
function tell(news) {
  hear(news);
  channel.postMessage(news);
}
let stream = null;
function connect(previews) {
  const again = stream !== null;
  stream?.close();
  stream = Object.assign(new EventSource(`/events?preview=${previews}`), { previews });
  stream.onopen = () => tell({ kind: "open", again });
  stream.onerror = () => tell({ kind: "lost" });
  for (const kind of ["job", "step", "preview", "queue"])
    stream.addEventListener(kind, ({ data }) => tell({ kind, data, step: data && JSON.parse(data) }));
}
function listen() {
  leads = true;
  connect(false);
  return new Promise(() => {});
}
// Previews are drawn while somebody looks: a tab in which one is to be seen says so, again and again.
const LOOK = 3000; // ms
let seen = 0; // when one said so last
function look() {
  if (!document.hidden && $$("[data-preview]").some(({ dataset }) => dataset.preview)) tell({ kind: "look" });
  if (leads && stream.previews && performance.now() - seen > 3 * LOOK) connect(false);
}
setInterval(look, LOOK);
if (navigator.locks) navigator.locks.request("steady-events", listen);
else listen();
channel.postMessage({ kind: "hello" });

let summary = null; // the last queue event, for tabs that come later
function hear({ kind, data, step, again }) {
  if (kind === "look") {
    seen = performance.now();
    return void (leads && !stream.previews && connect(true));
  }
  if (kind === "lost") return (gone = true), live(false);
  if (kind === "preview") return growing(step);
  if (kind === "hello") return void (summary && leads && channel.postMessage(summary));
  if (kind === "open") return void ((gone || again) && soon(), (gone = false));
  if (kind === "job") told(step);
  if (kind === "queue") {
    summary = { kind, data };
    return void (data !== document.body.dataset.seen && soon());
  }
  if (kind !== "step") return soon();
  const bar = $(`[data-bar="${step.job_id}"]`), words = $(`[data-steps="${step.job_id}"]`);
  if (!bar) return;
  bar.value = Math.round(step.progress * 100);
  if (words) words.textContent = `step ${step.step} of ${step.steps}`;
  const rest = document.title.replace(/^\d+%( · | — )/, "");
  document.title = `${bar.value}%${rest.startsWith("Steady") ? " — " : " · "}${rest}`;
}
let grown = 0;
function growing({ job_id, step }) {
  if (document.hidden || (calm(grown) > 0 && !$("#box").open)) return;
  grown = performance.now();
  for (const image of $$(`[data-preview="${job_id}"]`)) {
    const next = new Image();
    next.onload = () => {
      image.src = next.src;
      image.hidden = false;
    };
    next.src = `/jobs/${job_id}/preview?step=${step}`;
  }
}
const reconnecting = [make("span", "", "dot wait"), "Reconnecting …"];
function live(up) {
  if (!up) $("#live")?.replaceChildren(...reconnecting), (last = "");
}
document.onvisibilitychange = () => {
  if (dated) soon();
  look();
};
addEventListener("pageshow", (e) => e.persisted && soon());
const every = $("[data-every]")?.dataset.every;
if (every) setInterval(soon, every * 1000);
setInterval(() => {
  for (const left of $$("[data-left]")) {
    const now = Math.max(0, (left.dataset.left -= 1));
    if (now < 90) left.textContent = now < 1 ? "a moment left" : `about ${Math.round(now)} s left`;
  }
}, 1000);

// -- told when a batch ends: by a notification, where a person asked for them, and in the title

const asks = () => "Notification" in window && Notification.permission === "granted" && localStorage.getItem("tell") === "on";
const checks = new Map(); // ticket -> when to look whether it is done
function told({ ticket, state }) {
  if (!leads || !asks() || !["completed", "failed", "cancelled"].includes(state)) return;
  clearTimeout(checks.get(ticket));
  checks.set(ticket, setTimeout(ended, 800, ticket));
}
async function ended(ticket) {
  checks.delete(ticket);
  const { name, progress, error } = await ask(`GET /batches/${ticket}`).catch(() => ({ error: true }));
  if (error || progress.queued + progress.generating) return;
  const parts = [["completed", "done"], ["failed", "failed"], ["cancelled", "cancelled"]];
  const words = parts.filter(([state]) => progress[state]).map(([state, said]) => `${progress[state].toLocaleString("en")} ${said}`);
  const note = new Notification(name.startsWith("api-") ? "Your pictures are done" : `${name} is done`, { body: words.join(", "), tag: ticket });
  note.onclick = () => {
    focus();
    location.assign(`/batches/${ticket}`);
  };
}
async function askToTell() {
  const said = "Notification" in window ? await Notification.requestPermission() : "denied";
  localStorage.setItem("tell", said === "granted" && localStorage.getItem("tell") !== "on" ? "on" : "off");
  toast(asks() ? "You are told when a batch ends, while a tab is open." : said === "granted" ? "You are not told any more." : "The browser does not allow it for this address.", { bad: said !== "granted" });
}

// -- a new picture

const form = $("#new");
const OF_PICTURE = /^(image|mask.*|strength|resize)$/; // source.js says these
// What the form asks for, as a job says it; the seed apart, which may be longer than a Number holds.
// `rest`: what the job that is edited said, which holds where the form has no field.
function asked() {
  const given = Object.fromEntries(new FormData(form));
  const { size, width, height, seed, prompt, negative_prompt, model, lora, after, rest = "{}", ...numbers } = given;
  const sides = size ? size.split("x") : [width, height];
  const unasked = ([name]) => !(name in given) && !(form.beginning && OF_PICTURE.test(name));
  const job = { ...Object.fromEntries(Object.entries(JSON.parse(rest)).filter(unasked)), prompt };
  if (size !== "picture") Object.assign(job, { width: +sides[0], height: +sides[1] });
  for (const [name, value] of Object.entries(numbers)) if (value) job[name] = +value;
  if (negative_prompt) job.negative_prompt = negative_prompt;
  if (model) job.model = model;
  if (lora) job.lora = lora;
  return [job, seed];
}
form?.addEventListener("submit", async (e) => {
  e.preventDefault();
  const button = $("button.main", form);
  if (button.disabled) return;
  button.disabled = true;
  const [job, seed] = asked();
  try {
    Object.assign(job, await form.beginning?.()); // source.js
    let body = JSON.stringify(job);
    if (seed) body = body.slice(0, -1) + `,"seed":${BigInt(seed)}}`;
    const said = await order("POST /jobs", body);
    toast(`Queued ${count(said.jobs, "picture")}.`, { link: said.location });
    form.prompt.select();
  } catch (error) {
    toast(error.message, { bad: true });
  }
  button.disabled = false;
  refresh();
});
form?.model?.addEventListener("change", () => {
  const usual = form.model.selectedOptions[0].dataset;
  form.size.value = `${usual.width}x${usual.height}`;
  if (form.size.selectedIndex < 0) form.size.value = ""; // another size
  form.width.value = usual.width;
  form.height.value = usual.height;
  form.num_inference_steps.value = usual.steps;
});
// The LoRAs that are named in the field are pressed, and the other way round.
const named = () => form.lora.value.split(",").map((each) => each.trim()).filter(Boolean);
const pressLoras = () => {
  for (const chip of $$("[data-lora]", form)) chip.ariaPressed = `${named().some((each) => each.split(":")[0] === chip.dataset.lora)}`;
};
function pick({ lora }) {
  const others = named().filter((each) => each.split(":")[0] !== lora);
  form.lora.value = (others.length < named().length ? others : [...others, lora]).join(", ");
  pressLoras();
}
form?.lora?.addEventListener("input", pressLoras);
if (form?.lora) pressLoras();
form?.prompt.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    form.requestSubmit();
  }
});

// -- files: shown before they are queued

const ANY_TYPE = "application/octet-stream"; // the name says what it is
let ready = [], afterwards = null; // what is shown, and what is asked once it is queued

// All are looked at while the dialog is open already: of many one sees how far it is.
async function preview(files, folders = []) {
  const shown = $("#preview-files"), box = $("#preview"), mine = (ready = []);
  afterwards = null;
  shown.replaceChildren();
  $("#preview-go").hidden = true;
  if (!box.open) box.showModal();
  for (const folder of folders) {
    const inside = await filesOf(folder), images = inside.filter(({ type }) => type.startsWith("image/"));
    files.push(...inside.filter(({ type }) => !type.startsWith("image/")));
    if (images.length) beginnings(shown.appendChild(make("section")), folder.name, images);
    else if (!inside.length) files.push(new File([], folder.name));
  }
  for (const file of files) {
    if (ready !== mine || !box.open) return; // others came, or nobody wants them
    const part = shown.appendChild(make("section"));
    part.append(make("h3", file.name));
    const query = `filename=${encodeURIComponent(file.name)}`;
    try {
      const plan = await ask(`POST /jobs?dry_run=true&${query}`, file, ANY_TYPE);
      mine.push({ part, file, query, count: plan.count, key: plan.key });
      planned(part, plan);
    } catch (error) {
      await wrong(part, error, file.type.startsWith("image") ? null : file);
    }
  }
  if (ready === mine) offer();
}
function offer() {
  const go = $("#preview-go"), all = ready.reduce((sum, { count }) => (count === null ? NaN : sum + count), 0);
  go.textContent = all ? `Queue ${count(all, "picture")}` : "Queue";
  go.hidden = !ready.length;
  go.focus();
}

// The files of a dropped folder and of the folders in it.
async function filesOf(entry, found = []) {
  if (entry.isFile) found.push(await new Promise((done, fail) => entry.file(done, fail)));
  else {
    const reader = entry.createReader();
    for (let some = [0]; some.length; ) {
      some = await new Promise((done, fail) => reader.readEntries(done, fail));
      for (const each of some) await filesOf(each, found);
    }
  }
  return found;
}

// A folder of pictures: each is started from, with what the form says.
function beginnings(part, name, images) {
  part.append(make("h3", name));
  const words = form?.prompt.value.trim();
  if (!words) return part.append(make("p", "Write a prompt on the first page, then drop the folder there: each of its pictures is started from with it.", "wrong"));
  part.append(make("p", `${count(images.length, "picture")} to start from, each with the form's words:`, "meta"));
  part.append(Object.assign(make("p", words, "prompt"), { dir: "auto" }));
  ready.push({ part, images, name, count: images.length * (+form.count.value || 1) });
}
async function start({ images, name }) {
  const [{ width, height, ...job }] = asked(); // as large as each picture
  const jobs = [];
  for (const image of images) {
    const { sha256 } = await ask("POST /inputs", image, image.type);
    jobs.push({ ...job, image: `sha256:${sha256}` });
  }
  return order(`POST /jobs?filename=${encodeURIComponent(`${name}.json`)}`, JSON.stringify(jobs));
}

function planned(part, plan) {
  part.append(make("p", plan.count === null ? "A long table; it begins so:" : count(plan.count, "picture"), "meta"));
  const table = part.appendChild(make("table"));
  for (const job of plan.jobs.slice(0, 8)) {
    const line = table.insertRow();
    line.insertCell().append(Object.assign(make("span", job.prompt, "prompt"), { dir: "auto" }));
    line.insertCell().textContent = `${job.width} × ${job.height}`;
    line.insertCell().textContent = job.seed === null ? "" : `seed ${job.seed}`;
  }
  if (plan.count > 8) part.append(make("p", `and ${(plan.count - 8).toLocaleString("en")} more`, "meta"));
  for (const words of plan.warnings.slice(0, 5)) part.append(ticks(make("p", "", "meta"), words));
  for (const fault of plan.refused.slice(0, 5))
    part.append(ticks(make("p", "", "wrong"), `Row ${fault.row ?? "?"} is left out: ${fault.detail} ${fault.remedy ?? ""}`));
}

async function wrong(part, { message, said }, file) {
  part.append(ticks(make("p", "", "wrong"), message));
  const lines = file && file.size < 2e6 ? (await file.text()).split(/\r\n|\r|\n/) : [];
  const faults = (said.errors ?? []).slice(0, 8);
  for (const { line, detail } of faults) {
    if (faults.length > 1) part.append(ticks(make("p"), detail));
    if (lines[line - 1]) part.append(make("code", `${line}: ${lines[line - 1].slice(0, 300)}`, "place"));
  }
}

// One after the other. What cannot be queued stays in the dialog with the reason, to be tried again.
async function queue() {
  const all = ready, left = [], go = $("#preview-go");
  let sum = 0, last;
  go.disabled = true;
  for (const one of all) {
    try {
      const send = one.key ? ask : order; // a file may bring its own
      last = await (one.file ? send(`POST /jobs?${one.query}`, one.file, ANY_TYPE) : start(one));
      sum += last.jobs ?? one.count ?? NaN;
      one.part.remove();
    } catch (error) {
      left.push(one);
      $(".again", one.part)?.remove();
      one.part.append(ticks(make("p", "", "wrong again"), error.message));
    }
  }
  go.disabled = false;
  if (last) toast(sum ? `Queued ${count(sum, "picture")}.` : "Queued.", { link: all.length === 1 && last.location });
  if (ready === all) {
    ready = left;
    if (!left.length) await queued();
    else {
      if (!$("#preview").open) $("#preview").showModal();
      offer();
    }
  }
  refresh();
}
async function queued() {
  $("#preview").close();
  if (afterwards) await ask(...afterwards).catch((error) => toast(error.message, { bad: true }));
}

// The rows of a table that could not be used, as a person mended them. With its `error` column a
// table of ours is read as it was shown, apostrophes before formulas and all.
async function mend(section) {
  const cell = (text) => `"${text.replaceAll('"', '""')}"`;
  const names = $$("thead th", section).slice(0, -1).map((th) => th.textContent);
  const rows = $$("tbody tr", section).map((row) => $$("input", row).map((input) => input.value));
  const text = [[...names, "error"], ...rows.map((row) => [...row, ""])].map((row) => row.map(cell).join(",")).join("\r\n");
  const { ticket, name, all } = section.dataset;
  await preview([new File([text], `${name.replace(/\.\w+$/, "")}-mended.csv`)]);
  if (all !== undefined) afterwards = ["POST /attention/dismiss", JSON.stringify({ batches: [ticket] })];
}

$("#preview-go").onclick = queue;
$("#file")?.addEventListener("change", (e) => {
  preview([...e.target.files]);
  e.target.value = "";
});
const carries = (e) => [...(e.dataTransfer?.types ?? [])].includes("Files");
document.ondragover = (e) => {
  if (!carries(e)) return;
  e.preventDefault();
  document.body.classList.add("over");
};
document.ondragleave = (e) => e.relatedTarget ?? document.body.classList.remove("over");
document.ondrop = (e) => {
  if (!carries(e)) return;
  e.preventDefault();
  document.body.classList.remove("over");
  const entries = [...e.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
  const folders = entries.filter((entry) => entry?.isDirectory), names = folders.map(({ name }) => name);
  preview([...e.dataTransfer.files].filter(({ name }) => !names.includes(name)), folders);
};
document.onpaste = (e) => {
  const files = [...e.clipboardData.files], text = e.clipboardData.getData("text/plain").trim();
  const typing = e.target.closest?.("input, textarea");
  if (files.length) preview(files);
  else if (text && !typing) {
    const kind = /^[[{]/.test(text) ? "json" : /^(- )?\w+:/m.test(text) ? "yaml" : /^[^\n]*\bprompt\b[^\n]*[,;]/i.test(text) ? "csv" : "txt";
    preview([new File([text], `pasted.${kind}`)]);
  } else return;
  e.preventDefault();
};

// -- clicks and keys

document.addEventListener("click", (e) => {
  const on = e.target.closest("button, a");
  for (const menu of $$(".menu[open]"))
    if (!menu.contains(e.target) || (on && !on.closest("summary"))) menu.open = false;
  if (!on) return;
  const { dataset } = on;
  if (dataset.do || dataset.each) press(on);
  else if (dataset.many) pictures.many(dataset.many);
  else if (dataset.copy) copy($("#" + dataset.copy));
  else if (dataset.fill) (form.prompt.value = dataset.fill), form.prompt.focus();
  else if (dataset.lora) pick(dataset);
  else if ("tell" in dataset) askToTell();
  else if ("mend" in dataset) mend(on.closest("section"));
  else if ("help" in dataset) $("#help").showModal();
  else if ("close" in dataset) on.closest("dialog").close();
  else if (dataset.full && !(e.ctrlKey || e.metaKey || e.shiftKey)) {
    e.preventDefault();
    pictures.show(on.closest("[data-row]"));
  }
});
document.addEventListener("error", (e) => e.target.closest?.(".shot")?.classList.add("broken"), true);

async function copy(from) {
  getSelection().selectAllChildren(from);
  if (navigator.clipboard) await navigator.clipboard.writeText(from.textContent).catch(() => {});
  else document.execCommand("copy");
  toast("Copied.");
}

const allowed = $("#keys-on");
allowed.checked = localStorage.getItem("keys") !== "off";
allowed.onchange = () => localStorage.setItem("keys", allowed.checked ? "on" : "off");

async function move(by) {
  const all = () => $$("[data-row]").filter((row) => $("a.open", row));
  const now = () => document.activeElement?.closest("[data-row]");
  around(now());
  let rows = all(), at = rows.indexOf(now());
  if (by > 0 && rows.length && at === rows.length - 1 && (await more())) {
    rows = all();
    at = rows.indexOf(now());
  }
  const row = rows[at < 0 && by < 0 ? rows.length - 1 : Math.min(rows.length - 1, Math.max(0, at + by))];
  const link = row && $("a.open", row);
  if (row) link.focus();
  link?.scrollIntoView({ block: "nearest" });
}
const row = () => document.activeElement?.closest("[data-row]") ?? $("#job");
const KEYS = {
  ...pictures.KEYS,
  j: () => ($("#job") ? $("#go-next")?.click() : move(1)),
  k: () => ($("#job") ? $("#go-prev")?.click() : move(-1)),
  ArrowRight: () => ($("#job") ? $("#go-next")?.click() : move(1)),
  ArrowLeft: () => ($("#job") ? $("#go-prev")?.click() : move(-1)),
  ArrowDown: () => pictures.along(1),
  ArrowUp: () => pictures.along(-1),
  r: () => {
    const on = row();
    if (!on) return;
    const button = $("[data-retry], [data-again]", on);
    if (button) return press(button);
    const { id, state } = on.dataset;
    if (state === "completed")
      order(`POST /jobs/${id}/again?seed=new`).then(
        (said) => { toast("Queued with a new seed.", { link: said.location }); refresh(); },
        (error) => toast(error.message, { bad: true }),
      );
  },
  x: () => {
    const button = row() && $("[data-cancel], .pick input", row());
    if (button?.dataset.do) press(button);
    else button?.click();
  },
  p: () => $("#pause")?.click(),
  n: () => ($("#prompt") ? $("#prompt").focus() : location.assign("/#prompt")),
  "/": () => ($("#search") ? $("#search").focus() : location.assign("/pictures#search")),
  "?": () => $("#help").showModal(),
};
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing) return;
  if (pictures.pressed(e.key)) return;
  if (e.key === "Escape") for (const menu of $$(".menu[open]")) menu.open = false;
  if ($("dialog[open]") || !allowed.checked || e.target.closest("input:not([type=checkbox]), textarea, select")) return;
  const act = KEYS[e.key];
  if (!act) return;
  const rows = document.activeElement?.closest(".rows .card");
  if (e.key.length === 1 || rows) e.preventDefault();
  act();
});
if (["#prompt", "#search"].includes(location.hash)) $(location.hash)?.focus();

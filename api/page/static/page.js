// The page's script. The server renders everything; this presses the API's buttons, follows
// the events, and fetches the same page again when something has changed.
const $ = (what, where = document) => where.querySelector(what);
const $$ = (what, where = document) => [...where.querySelectorAll(what)];
const make = (name, words = "", kind = "") =>
  Object.assign(document.createElement(name), { textContent: words, className: kind });
// Words with what stands between backticks as code.
const ticks = (where, words) => {
  words.split("`").forEach((part, n) => where.append(n % 2 ? make("code", part) : part));
  return where;
};
const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
const JSON_TYPE = "application/json";

// -- asking

async function ask(line, body, type = JSON_TYPE) {
  const [method, address] = line.split(" ");
  const headers = body === undefined ? {} : { "Content-Type": type };
  const answer = await fetch(address, { method, body, headers }).catch(() => null);
  if (!answer) throw Object.assign(new Error("The service does not answer."), { said: {} });
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const words = [said.detail || `Error ${answer.status}`, said.remedy].filter(Boolean).join(" ");
  throw Object.assign(new Error(words), { said });
}

function toast(words, { bad = false, undo, link } = {}) {
  const box = make("div", words, bad ? "toast bad" : "toast");
  if (undo) {
    const button = make("button", "Undo");
    button.onclick = () => { box.remove(); undoing(undo); };
    box.append(button);
  }
  if (link) box.append(Object.assign(make("a", "Open", "button"), { href: link }));
  $("#toasts").append(box);
  setTimeout(() => box.remove(), bad ? 12000 : 8000);
}

// A running job is cancelled only after its step: until then it cannot be queued again.
async function undoing(line, tries = 20) {
  try {
    await ask(line);
    refresh();
  } catch (error) {
    if (error.said.code === "wrong_state" && error.said.state === "generating" && tries)
      setTimeout(undoing, 300, line, tries - 1);
    else toast(error.message, { bad: true });
  }
}

function sure(words, yes) {
  $("#sure-words").textContent = words;
  $("#sure-yes").textContent = yes;
  const box = $("#sure");
  box.returnValue = "";
  box.showModal();
  return new Promise((done) => (box.onclose = () => done(box.returnValue === "yes")));
}

async function press(button) {
  const { do: line, each, ids = "", list, body, say, undo, then, go } = button.dataset;
  if (button.dataset.sure && !(await sure(button.dataset.sure, button.dataset.yes))) return;
  const some = ids.split(" ").filter(Boolean);
  const listed = list && JSON.stringify({ [list]: some });
  button.disabled = true;
  try {
    let said;
    if (each) for (const id of some) said = await ask(each.replace("{}", id));
    else said = await ask(line, body ?? (then ? undefined : listed));
    if (then) await ask(then, listed);
    toast(say, { undo, link: go !== undefined && said.location });
  } catch (error) {
    toast(error.message, { bad: true });
  }
  button.disabled = false;
  refresh();
}

// -- the same page, newer

let busy = false, stale = false, due = 0;
function soon(wait = 150) {
  stale = true;
  if (!due && !document.hidden) due = setTimeout(refresh, wait);
}

async function refresh() {
  clearTimeout(due);
  due = 0;
  if (busy) return void (stale = true);
  busy = true;
  stale = false;
  const begun = performance.now();
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer) live(false);
  else if (answer.ok) {
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = document.activeElement?.closest("[data-row]");
    const rows = $$("[data-row]"), at = rows.indexOf(focused);
    for (const id of ["head", "main"]) morph($("#" + id), page.getElementById(id));
    document.title = page.title;
    if (focused && !focused.isConnected) {
      const next = [...rows.slice(at), ...rows.slice(0, at).reverse()].find((r) => r.isConnected);
      $("a.open", next ?? undefined)?.focus();
    }
    choose();
  }
  busy = false;
  // A slow page is fetched less often.
  if (stale) soon(Math.max(400, 3 * (performance.now() - begun)));
}

// Make the children of `old` those of `now`. Elements with an id stay themselves, so focus,
// open details and ticked boxes outlive a change; data-keep is left alone.
function morph(old, now) {
  for (const { name, value } of [...now.attributes])
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes])
    if (name !== "open" && name !== "disabled" && !now.hasAttribute(name)) old.removeAttribute(name);
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
channel.onmessage = ({ data }) => hear(data);
function tell(news) {
  hear(news);
  channel.postMessage(news);
}
function listen() {
  const stream = new EventSource("/events?preview=true");
  stream.onopen = () => tell({ kind: "open" });
  stream.onerror = () => tell({ kind: "lost" });
  for (const kind of ["job", "step", "preview", "queue"])
    stream.addEventListener(kind, (e) => tell({ kind, step: e.data && JSON.parse(e.data) }));
  return new Promise(() => {});
}
if (navigator.locks) navigator.locks.request("steady-events", listen);
else listen();

function hear({ kind, step }) {
  if (kind === "lost") return live(false);
  if (kind === "preview") return growing(step);
  if (kind !== "step") return soon();
  const bar = $(`[data-bar="${step.job_id}"]`), words = $(`[data-steps="${step.job_id}"]`);
  if (!bar) return;
  bar.value = Math.round(step.progress * 100);
  if (words) words.textContent = `step ${step.step} of ${step.steps}`;
  const rest = document.title.replace(/^\d+%( · | — )/, "");
  document.title = `${bar.value}%${rest.startsWith("Steady") ? " — " : " · "}${rest}`;
}
function growing({ job_id, step }) {
  for (const image of $$(`[data-preview="${job_id}"]`)) {
    const next = new Image();
    next.onload = () => {
      image.src = next.src;
      image.hidden = false;
    };
    next.src = `/jobs/${job_id}/preview?step=${step}`;
  }
}
function live(up) {
  if (!up) $("#live")?.replaceChildren(make("span", "", "dot wait"), "Reconnecting …");
}
document.onvisibilitychange = () => stale && soon();
addEventListener("pageshow", (e) => e.persisted && soon());
soon(700);
const every = $("[data-every]")?.dataset.every;
if (every) setInterval(soon, every * 1000);
setInterval(() => {
  for (const left of $$("[data-left]")) {
    const now = Math.max(0, (left.dataset.left -= 1));
    if (now < 90) left.textContent = now < 1 ? "a moment left" : `about ${Math.round(now)} s left`;
  }
}, 1000);

// -- a new picture

const form = $("#new");
form?.addEventListener("submit", async (e) => {
  e.preventDefault();
  const given = Object.fromEntries(new FormData(form));
  const { size, width, height, seed, prompt, negative_prompt, model, lora, ...numbers } = given;
  const sides = size ? size.split("x") : [width, height];
  const job = { prompt };
  if (size !== "picture") Object.assign(job, { width: +sides[0], height: +sides[1] });
  for (const [name, value] of Object.entries(numbers)) if (value) job[name] = +value;
  if (negative_prompt) job.negative_prompt = negative_prompt;
  if (model) job.model = model;
  if (lora) job.lora = lora;
  try {
    Object.assign(job, await form.beginning?.()); // source.js
    let body = JSON.stringify(job);
    if (seed) body = body.slice(0, -1) + `,"seed":${BigInt(seed)}}`; // longer than a Number holds
    const said = await ask("POST /jobs", body);
    toast(`Queued ${count(said.jobs, "picture")}.`, { link: said.location });
    form.prompt.select();
  } catch (error) {
    toast(error.message, { bad: true });
  }
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
form?.addEventListener("trouble", (e) => toast(e.detail, { bad: true }));
form?.prompt.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    form.requestSubmit();
  }
});

// -- files: shown before they are queued

const ANY_TYPE = "application/octet-stream"; // the name says what it is
let ready = [];

async function preview(files, folders = []) {
  const shown = $("#preview-files"), go = $("#preview-go");
  ready = [];
  shown.replaceChildren();
  for (const file of files.slice(0, 50)) {
    const part = shown.appendChild(make("section"));
    part.append(make("h3", file.name));
    if (folders.includes(file.name)) {
      part.append(make("p", "This is a folder; folders are not read. Drop its files.", "wrong"));
      continue;
    }
    const query = `filename=${encodeURIComponent(file.name)}`;
    try {
      const plan = await ask(`POST /jobs?dry_run=true&${query}`, file, ANY_TYPE);
      ready.push({ file, query, count: plan.count });
      planned(part, plan);
    } catch (error) {
      await wrong(part, error, file.type.startsWith("image") ? null : file);
    }
  }
  const all = ready.reduce((sum, { count }) => (count === null ? NaN : sum + count), 0);
  go.textContent = all ? `Queue ${count(all, "picture")}` : "Queue";
  go.hidden = !ready.length;
  $("#preview").showModal();
  go.focus();
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
  for (const words of plan.warnings.slice(0, 5)) part.append(make("p", words, "meta"));
  for (const fault of plan.refused.slice(0, 5))
    part.append(make("p", `Row ${fault.row ?? "?"} is left out: ${fault.detail} ${fault.remedy ?? ""}`, "wrong"));
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

async function queue() {
  let sum = 0, last;
  $("#preview").close();
  try {
    for (const { file, query, count } of ready) {
      last = await ask(`POST /jobs?${query}`, file, ANY_TYPE);
      sum += last.jobs ?? count ?? NaN;
    }
    toast(sum ? `Queued ${count(sum, "picture")}.` : "Queued.", { link: ready.length === 1 && last.location });
  } catch (error) {
    toast(error.message, { bad: true });
  }
  refresh();
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
  preview([...e.dataTransfer.files], entries.filter((e) => e?.isDirectory).map((e) => e.name));
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

// -- choosing pictures

const chosen = () => $$(".card:has(.pick :checked)").map((card) => card.dataset.id);
function choose() {
  const bar = $("#chosen"), ids = chosen();
  if (!bar) return;
  bar.hidden = !ids.length;
  $("#main").classList.toggle("choosing", ids.length > 0);
  $("#chosen-count").textContent = `${ids.length} chosen`;
  $("#chosen-zip").href = "/jobs/images.zip?" + ids.map((id) => "id=" + id).join("&");
}
document.onchange = (e) => e.target.closest(".pick") && choose();

async function many(what) {
  const ids = chosen();
  if (what === "all" || what === "none") {
    for (const box of $$(".pick input")) box.checked = what === "all";
    return choose();
  }
  if (what === "delete" && !(await sure(`Delete ${count(ids.length, "picture")}? The files are removed for good.`, "Delete"))) return;
  try {
    for (const id of ids)
      await ask(what === "delete" ? `DELETE /jobs/${id}/image` : `POST /jobs/${id}/again?seed=new`);
    toast(what === "delete" ? `Deleted ${count(ids.length, "picture")}.` : `Queued ${count(ids.length, "picture")}, each with a new seed.`);
    many("none");
  } catch (error) {
    toast(error.message, { bad: true });
  }
  refresh();
}

// -- one picture, large

const box = $("#box");
let shown = null;
function show(card) {
  const link = card && $("[data-full]", card);
  if (!link) return;
  shown = card;
  const image = Object.assign($("#box-img"), { src: link.dataset.full, alt: $("img", link).alt });
  image.dataset.preview = card.dataset.state === "generating" ? card.dataset.id : "";
  $("#box-words").textContent = $(".prompt", card).textContent;
  $("#box-open").href = link.href;
  if (!box.open) box.showModal();
}
function step(by) {
  const cards = $$(".card:has([data-full])");
  show(cards[cards.findIndex((card) => card.id === shown.id) + by]);
}
$("#box-prev").onclick = () => step(-1);
$("#box-next").onclick = () => step(1);
box.onclose = () => {
  $("#box-img").removeAttribute("src");
  $("a.open", document.getElementById(shown.id) ?? shown)?.focus();
};
box.onclick = (e) => e.target === box && box.close();

// -- clicks and keys

document.addEventListener("click", (e) => {
  const on = e.target.closest("button, a");
  for (const menu of $$(".menu[open]")) if (!menu.contains(e.target) || on) menu.open = false;
  if (!on) return;
  const { dataset } = on;
  if (dataset.do || dataset.each) press(on);
  else if (dataset.many) many(dataset.many);
  else if (dataset.copy) copy($("#" + dataset.copy));
  else if ("help" in dataset) $("#help").showModal();
  else if ("close" in dataset) on.closest("dialog").close();
  else if (dataset.full && !(e.ctrlKey || e.metaKey || e.shiftKey)) {
    e.preventDefault();
    show(on.closest("[data-row]"));
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

function move(by) {
  const rows = $$("[data-row]").filter((row) => $("a.open", row));
  const at = rows.indexOf(document.activeElement?.closest("[data-row]"));
  const row = rows[at < 0 && by < 0 ? rows.length - 1 : Math.min(rows.length - 1, Math.max(0, at + by))];
  const link = row && $("a.open", row);
  if (row) link.focus();
  link?.scrollIntoView({ block: "nearest" });
}
const row = () => document.activeElement?.closest("[data-row]") ?? $("#job");
const KEYS = {
  j: () => ($("#job") ? $("#go-next")?.click() : move(1)),
  k: () => ($("#job") ? $("#go-prev")?.click() : move(-1)),
  ArrowRight: () => $("#go-next")?.click(),
  ArrowLeft: () => $("#go-prev")?.click(),
  r: () => {
    const on = row();
    if (!on) return;
    const button = $("[data-retry], [data-again]", on);
    if (button) return press(button);
    const { id, state } = on.dataset;
    if (state === "completed")
      ask(`POST /jobs/${id}/again?seed=new`).then(
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
  if (box.open) {
    if (e.key === "ArrowRight" || e.key === "j") step(1);
    if (e.key === "ArrowLeft" || e.key === "k") step(-1);
    return;
  }
  if (e.key === "Escape") for (const menu of $$(".menu[open]")) menu.open = false;
  if ($("dialog[open]") || !allowed.checked || e.target.closest("input, textarea, select")) return;
  const act = KEYS[e.key];
  if (!act) return;
  if (e.key.length === 1) e.preventDefault();
  act();
});
if (["#prompt", "#search"].includes(location.hash)) $(location.hash)?.focus();

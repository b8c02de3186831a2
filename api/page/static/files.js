// Files and folders that are dropped, pasted or chosen: shown before they are queued.
import { $, $$, ask, complain, count, make, order, stale, ticks, toast } from "./ask.js";
import { asked, form, written } from "./form.js";

const ANY_TYPE = "application/octet-stream"; // the name says what it is
const MOST = 1000; // files at a time: each is asked about, and of more pictures one file of jobs is not made
let ready = [], afterwards = null; // what is shown, and what is asked once it is queued

// All are looked at while the dialog is open already: of many one sees how far it is.
async function preview(files, folders = []) {
  const shown = $("#preview-files"), box = $("#preview"), mine = (ready = []);
  afterwards = null;
  shown.replaceChildren();
  $("#preview-go").hidden = true;
  if (!box.open) box.showModal();
  const left = { from: "", unread: [], empty: [] };
  for (const folder of folders) {
    const inside = await filesOf(folder, left), images = inside.filter(({ type }) => type.startsWith("image/"));
    if (ready !== mine || !box.open) return;
    files.push(...inside.filter(({ type }) => !type.startsWith("image/")));
    if (images.length) beginnings(shown.appendChild(make("section")), folder.name, images);
    else if (!inside.length && !left.unread.length) left.empty.push(folder.name);
  }
  for (const { name } of files.splice(MOST)) left.from ||= name;
  leftOut(shown, left);
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

// The files of a dropped folder and of the folders in it but for hidden ones, which the inbox leaves as well.
// `left`: from where on nothing was taken since it is too much, and what could not be read.
async function filesOf(folder, left) {
  const found = [];
  let over = "";
  async function gather(entry) {
    if (found.length === MOST) return void (over ||= entry.fullPath);
    if (entry.isFile) return void found.push(await new Promise((done, fail) => entry.file(done, fail)));
    const reader = entry.createReader();
    for (let some = [0]; some.length && !over; ) {
      some = await new Promise((done, fail) => reader.readEntries(done, fail));
      for (const each of some)
        if (!each.name.startsWith(".")) await gather(each).catch(() => left.unread.push(each.fullPath));
    }
  }
  await gather(folder).catch(() => left.unread.push(folder.fullPath));
  left.from ||= over;
  return found;
}
// What of a drop is not taken, and why.
function leftOut(shown, { from, unread, empty }) {
  const words = [];
  if (from) words.push(`Only the first ${MOST.toLocaleString("en")} files are taken: not ${from} and what comes after it. Drop those by themselves.`);
  if (unread.length) words.push(`Not taken, since the browser cannot read it: ${unread.slice(0, 5).join(", ")}${unread.length > 5 ? ` and ${unread.length - 5} more` : ""}.`);
  if (empty.length) words.push(`Nothing to read is in ${empty.join(", ")}.`);
  if (words.length) shown.append(make("section"));
  for (const each of words) shown.lastChild.append(make("p", each, "wrong"));
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
  const [{ width, height, ...job }, exact] = asked(); // as large as each picture
  const jobs = [];
  for (const image of images) {
    const { sha256 } = await ask("POST /inputs", image, image.type);
    jobs.push(written({ ...job, image: `sha256:${sha256}` }, exact));
  }
  return order(`POST /jobs?filename=${encodeURIComponent(`${name}.json`)}`, `[${jobs}]`);
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
  stale();
}
async function queued() {
  $("#preview").close();
  if (afterwards) await ask(...afterwards).catch(complain);
}

// The rows of a table that could not be used, as a person mended them. With its `error` column a
// table of ours is read as it was shown, apostrophes before formulas and all.
export async function mend(section) {
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

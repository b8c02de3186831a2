// The page's script. The server renders everything; this presses the API's buttons by click and by key.
import { $, $$, ask, complain, order, stale, sure, toast } from "./ask.js";
import "./events.js";
import { mend } from "./files.js";
import { form, pick } from "./form.js";
import { around, more } from "./gallery.js";
import { askToTell } from "./notices.js";
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
    complain(error);
  }
  button.disabled = false;
  stale();
}

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
  link?.focus();
  link?.scrollIntoView({ block: "nearest" });
}
const row = () => document.activeElement?.closest("[data-row]") ?? $("#job");
const next = () => ($("#job") ? $("#go-next")?.click() : move(1));
const previous = () => ($("#job") ? $("#go-prev")?.click() : move(-1));
const KEYS = {
  ...pictures.KEYS,
  j: next,
  k: previous,
  ArrowRight: next,
  ArrowLeft: previous,
  ArrowDown: () => pictures.along(1),
  ArrowUp: () => pictures.along(-1),
  r: () => {
    const on = row(), button = on && $("[data-retry], [data-again]", on);
    if (button) button.click();
    else if (on?.dataset.state === "completed")
      press({ dataset: { do: `POST /jobs/${on.dataset.id}/again?seed=new`, say: "Queued with a new seed.", go: "" } });
  },
  x: () => row() && $("[data-cancel], .pick input", row())?.click(),
  p: () => $("#pause")?.click(),
  n: () => ($("#prompt") ? $("#prompt").focus() : location.assign("/#prompt")),
  "/": () => ($("#search") ? $("#search").focus() : location.assign("/pictures#search")),
  "?": () => $("#help").showModal(),
};
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing) return;
  const menu = $(".menu[open]");
  if (e.key === "Escape" && menu) {
    e.preventDefault(); // a dialog around it stays open
    menu.open = false;
    return $("summary", menu).focus();
  }
  if (pictures.pressed(e.key)) return;
  if ($("dialog[open]") || !allowed.checked || e.target.closest("input:not([type=checkbox]), textarea, select")) return;
  const act = KEYS[e.key];
  if (!act) return;
  const rows = document.activeElement?.closest(".rows .card");
  if (e.key.length === 1 || rows) e.preventDefault();
  act();
});
if (["#prompt", "#search"].includes(location.hash)) $(location.hash)?.focus();

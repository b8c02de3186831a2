// The same page, newer: fetched again when something has changed, and the old one made like it, element
// by element, so that focus, ticked boxes and open menus stay.
import { $, $$, make } from "./ask.js";
import * as pictures from "./pictures.js";

const CALM = 5000; // ms between two looks while things change by themselves and nobody does anything …
const ACTIVE = 10000; // … for so long
const AGAIN = 2000; // ms after a look that was not answered
let acted = 0, pressing = false;
for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => (acted = performance.now()), true);
for (const kind of ["pointerdown", "pointerup", "pointercancel"])
  addEventListener(kind, ({ type, button }) => (pressing = type === "pointerdown" && !button), true);
// What a person is about to press stays where it is: until then nothing is drawn anew.
const held = () => pressing || $(".menu[open]") !== null;
// How long the next look waits after the one at `since`.
export const calm = (since) => (performance.now() - acted < ACTIVE ? 0 : since + CALM - performance.now());
let busy = false, dated = false, due = 0, looked = 0, last = "";
document.addEventListener("stale", refresh);
export function soon(wait = 150) {
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
  const text = await answer?.text().catch(() => null); // unchanged, it came as a 304 from the browser's own store
  if (text == null) {
    lost(); // no answer, or one that was cut off
    setTimeout(soon, AGAIN);
  } else if (answer.ok) {
    if (text !== last && held()) dated = true;
    else if (text !== last) renew(new DOMParser().parseFromString((last = text), "text/html"));
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
  document.dispatchEvent(new Event("renewed"));
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
    } else if (!("keep" in have.dataset) && !have.isEqualNode(want)) morph(have, want);
  }
  while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
}

const reconnecting = [make("span", "", "dot wait"), "Reconnecting …"];
// The service does not answer; what it says next is drawn even if it is what it said last.
export function lost() {
  $("#live")?.replaceChildren(...reconnecting);
  last = "";
}
document.addEventListener("visibilitychange", () => dated && soon());
addEventListener("pageshow", (e) => e.persisted && soon());
const every = $("[data-every]")?.dataset.every;
if (every) setInterval(soon, every * 1000);
setInterval(() => {
  for (const left of $$("[data-left]")) {
    const now = Math.max(0, (left.dataset.left -= 1));
    if (now < 90) left.textContent = now < 1 ? "a moment left" : `about ${Math.round(now)} s left`;
  }
}, 1000);

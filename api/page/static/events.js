// What happens in the service, while it happens: one tab listens for all of them.
import { $, $$ } from "./ask.js";
import { calm, lost, soon } from "./newer.js";
import { told } from "./notices.js";

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
  if (kind === "lost") return (gone = true), lost();
  if (kind === "preview") return growing(step);
  if (kind === "hello") return void (summary && leads && channel.postMessage(summary));
  if (kind === "open") return void ((gone || again) && soon(), (gone = false));
  if (kind === "job" && leads) told(step);
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
document.addEventListener("visibilitychange", look);
document.addEventListener("renewed", look);

// Told when a batch ends: by a notification of the browser, where a person asked for them.
import { ask, toast } from "./ask.js";

const asks = () => "Notification" in window && Notification.permission === "granted" && localStorage.getItem("tell") === "on";
const checks = new Map(); // ticket -> when to look whether it is done
export function told({ ticket, state }) {
  if (!asks() || !["completed", "failed", "cancelled"].includes(state)) return;
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
export async function askToTell() {
  const said = "Notification" in window ? await Notification.requestPermission() : "denied";
  localStorage.setItem("tell", said === "granted" && localStorage.getItem("tell") !== "on" ? "on" : "off");
  toast(asks() ? "You are told when a batch ends, while a tab is open." : said === "granted" ? "You are not told any more." : "The browser does not allow it for this address.", { bad: said !== "granted" });
}

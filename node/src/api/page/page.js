"use strict";
// Fetches the page's contents anew while somebody looks at it. What is in them was escaped where it was written.
const every = 2000;
const lost = document.getElementById("lost");
const main = document.querySelector("main");
let since = null;
async function look() {
  try {
    const answer = await fetch("/shoal/page", { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.headers.get("content-type")?.startsWith("text/html")) throw new Error("not the page");
    main.innerHTML = await answer.text();
    since = null;
    lost.textContent = "";
  } catch {
    since ??= new Date();
    lost.textContent = "No answer from this node since " + since.toLocaleTimeString() + ": what is below is older.";
  }
}
async function goOn() {
  if (!document.hidden) await look();
  setTimeout(goOn, every);
}
setTimeout(goOn, every);

// Keys of Teach: 1 and 2 choose, 0 skips; not while somebody types, and only while the buttons are seen.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (event.target.closest("input, textarea, select, [contenteditable=true], [role=listbox]")) return;
  const id = { 1: "choose-first", 2: "choose-second", 0: "choose-skip" }[event.key];
  const button = id && document.getElementById(id);
  if (button && button.offsetParent !== null && !button.disabled) {
    event.preventDefault();
    button.click();
  }
});

// The report is as high as its content, so that the page has one scroll bar.
const fit = (frame) => {
  const body = frame.contentDocument && frame.contentDocument.documentElement;
  if (body && body.scrollHeight > 200) frame.style.height = `${body.scrollHeight}px`;
};
document.addEventListener("load", (event) => event.target.matches?.("iframe.report") && fit(event.target), true);
window.addEventListener("resize", () => document.querySelectorAll("iframe.report").forEach((frame) => {
  frame.style.height = "";
  fit(frame);
}));

// What the answers have shown is read out after each one. The region itself must stay: only its content is exchanged.
new MutationObserver((_, observer) => {
  const status = document.getElementById("teach-status");
  if (!status) return;
  status.setAttribute("aria-live", "polite");
  observer.disconnect();
}).observe(document, { childList: true, subtree: true });

// Draws the figures of a report. Plotly's script is in the page, packed; nothing is fetched.
const figures = JSON.parse(document.getElementById("figures").textContent);
const canvases = [...document.querySelectorAll(".canvas")];

function draw(canvas) {
  if (canvas.dataset.drawn) return;
  canvas.dataset.drawn = "yes";
  const figure = figures[Number(canvas.dataset.figure)];
  // A copy: Plotly writes into what it is given.
  const data = structuredClone(figure.data);
  const off = hidden(canvas.closest("section"));
  for (const trace of data) if (off.has(trace.name)) trace.visible = false;
  Plotly.newPlot(canvas, data, merged(figure.layout), plotOptions);
}

function hidden(section) {
  return new Set([...section.querySelectorAll('button[aria-pressed="false"]')].map((b) => b.dataset.line));
}

function toggle(button) {
  const shown = button.getAttribute("aria-pressed") !== "true";
  const section = button.closest("section");
  for (const other of section.querySelectorAll("button[data-line]"))
    if (other.dataset.line === button.dataset.line) other.setAttribute("aria-pressed", String(shown));
  for (const canvas of section.querySelectorAll(".canvas[data-drawn]")) {
    const which = canvas.data.flatMap((trace, i) => (trace.name === button.dataset.line ? [i] : []));
    if (which.length) Plotly.restyle(canvas, { visible: shown }, which);
  }
}

// One after the other, so that the page can be read and scrolled meanwhile.
const waiting = [];
let busy = false;
function next() {
  if (busy || !waiting.length) return;
  busy = true;
  draw(waiting.shift());
  requestAnimationFrame(() => setTimeout(() => { busy = false; next(); }));
}

async function start() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
  for (const canvas of canvases) canvas.style.minHeight = `${figures[Number(canvas.dataset.figure)].layout.height || 270}px`;
  const seen = new IntersectionObserver((entries) => {
    const near = entries.filter((e) => e.isIntersecting).map((e) => e.target);
    near.forEach((canvas) => seen.unobserve(canvas));
    waiting.push(...near);
    next();
  }, { rootMargin: "400px" });
  canvases.forEach((canvas) => seen.observe(canvas));
  document.querySelectorAll("button[data-line]").forEach((b) => b.addEventListener("click", () => toggle(b)));
  // On paper all is drawn that is not folded away, as wide as its place there.
  const fit = () => canvases.forEach((c) => {
    if (c.offsetParent === null) return;
    draw(c);
    Plotly.relayout(c, { width: c.clientWidth });
  });
  addEventListener("beforeprint", fit);
  matchMedia("print").addEventListener("change", (e) => { if (e.matches) fit(); });
  addEventListener("afterprint", () => canvases.forEach((c) => c.dataset.drawn && Plotly.relayout(c, { width: null, autosize: true })));
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  const note = document.createElement("p");
  note.className = "trouble";
  note.textContent = `The figures cannot be drawn in this browser (${error.message}); the tables are complete without them.`;
  document.querySelector("main").prepend(note);
  document.documentElement.dataset.ready = "failed";
});

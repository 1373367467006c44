"""How the page looks, and the little that moves. No font, picture or script comes from anywhere else."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c2430; --quiet: #596579; --rule: #d9dee6; --wash: #f4f6f9;
  --bar: #2f6fb3; --spike: #e3f1e7; --spike-line: #3d8457; --current: #e6eef8; --current-line: #3f6fa8;
  --warn: #9a4a00; --track: #dfe5ed;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181f; --ink: #e4e9f0; --quiet: #9eabbd; --rule: #313a47; --wash: #1c222b;
    --bar: #6ca8e6; --spike: #1d3426; --spike-line: #6dbb88; --current: #1c2c42; --current-line: #78a7de;
    --warn: #f0a35e; --track: #313a47;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 86rem;
  font: 15px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 0.4rem; padding-top: 0.9rem; border-top: 1px solid var(--rule); }
p { max-width: 48rem; margin: 0.4rem 0 0.8rem; }
a { color: var(--bar); }
code { font-family: ui-monospace, monospace; font-size: 0.92em; }
.quiet { color: var(--quiet); }
nav { margin: 0.8rem 0 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: 0.7rem; margin: 1.2rem 0; }
.tiles div { background: var(--wash); border: 1px solid var(--rule); border-radius: 6px; padding: 0.6rem 0.8rem; }
.tiles dt { color: var(--quiet); font-size: 0.85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: 0.8rem; color: var(--quiet); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; margin: 0.3rem 0 1rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding-bottom: 0.3rem; }
th, td { padding: 0.28rem 0.8rem 0.28rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
td, tbody th { vertical-align: middle; white-space: nowrap; }
thead th { vertical-align: bottom; font-weight: 600; font-size: 0.85rem; color: var(--quiet); line-height: 1.25; }
tbody th { font-weight: 500; }
tr > th:first-child { position: sticky; left: 0; background: var(--paper); }
.n { text-align: right; }
.pair { display: flex; align-items: center; gap: 0.6rem; }
.pair span { min-width: 3.2em; text-align: right; }
td.wrap { white-space: normal; min-width: 13rem; }
.none { color: var(--quiet); }
.warn { color: var(--warn); font-weight: 600; }
details { border: 1px solid var(--rule); border-radius: 6px; margin: 0.5rem 0; padding: 0 0.8rem; }
summary { cursor: pointer; padding: 0.45rem 0; }
summary b { margin-right: 0.6rem; }
button { font: inherit; color: inherit; background: var(--wash); border: 1px solid var(--rule); border-radius: 6px;
  padding: 0.2rem 0.7rem; cursor: pointer; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; background: var(--wash); border: 1px solid var(--rule); border-radius: 6px;
  padding: 0.6rem; }
figcaption { font-weight: 600; margin-bottom: 0.2rem; }
.key { display: inline-block; width: 1.5em; height: 0.9em; vertical-align: -0.08em; margin: 0 0.2em 0 0.5em; }
.key.spiking { background: var(--spike); border: 1px solid var(--spike-line); border-radius: 4px; }
.key.current { background: var(--current); border: 1px solid var(--current-line); }
svg { display: block; }
svg.graph { max-width: max(100%, 22rem); height: auto; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; text-anchor: middle; }
.graph text.name { font-weight: 600; font-size: 12px; }
.graph .spiking rect { fill: var(--spike); stroke: var(--spike-line); }
.graph .current rect { fill: var(--current); stroke: var(--current-line); }
.graph .port rect { fill: var(--paper); stroke: var(--rule); }
.graph .edge { fill: none; stroke: var(--quiet); stroke-width: 1.2; }
.graph .head { fill: var(--quiet); }
.chart text { fill: var(--quiet); font-size: 10px; }
.chart .left { text-anchor: start; }
.chart .right { text-anchor: end; }
.bar { fill: var(--bar); }
.track { fill: var(--track); }
.axis { fill: none; stroke: var(--quiet); stroke-width: 1; }
.rail { fill: none; stroke: var(--track); stroke-width: 2; }
.span { fill: none; stroke: var(--bar); stroke-width: 4; opacity: 0.45; }
.raster { margin: 0.6rem 0; }
.raster select { font: inherit; color: inherit; background: var(--wash); border: 1px solid var(--rule);
  max-width: 100%; }
.raster output { color: var(--quiet); }
.view { overflow: auto; max-width: 100%; max-height: 30rem; border: 1px solid var(--rule); border-radius: 6px; }
.tokens { display: flex; width: max-content; position: sticky; top: 0; background: var(--paper); font-size: 0.75rem; }
.tokens span { flex: none; overflow: hidden; white-space: nowrap; border-left: 1px solid var(--rule);
  padding-left: 1px; }
canvas { display: block; image-rendering: pixelated; }
@media print { details { break-inside: avoid; } button, nav { display: none; } }
"""

# Opens all parts of a section, or closes them where all are open.
SCRIPT = """
"use strict";
for (const button of document.querySelectorAll("button[data-all]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const parts = [...button.closest("section").querySelectorAll("details")];
    const open = parts.some((part) => !part.open);
    for (const part of parts) part.open = open;
    button.textContent = open ? "Close all" : "Open all";
  });
}
"""

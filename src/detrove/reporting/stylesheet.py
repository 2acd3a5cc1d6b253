"""The looks of every page: system fonts, one column, colours for light, dark and paper."""

STYLESHEET = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #5b6470; --line: #d8dde3; --tile: #f3f5f8;
  --bar: #0072b2; --bar-faint: #0072b233; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e8ebef; --faint: #a3adb8; --line: #353c44;
  --tile: #1e2329; --bar: #2f9bdb; --bar-faint: #2f9bdb40; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; padding-top: 16px; border-top: 1px solid var(--line); break-after: avoid; }
p, ul { max-width: 46rem; margin: 0 0 12px; }
ul { padding-left: 1.2rem; }
.option { white-space: nowrap; }
.lead { color: var(--faint); font-size: 1.05rem; overflow-wrap: anywhere; }
figure { margin: 0 0 16px; break-inside: avoid; min-width: 0; }
figcaption { color: var(--faint); font-size: .875rem; line-height: 1.4; margin-top: 6px; max-width: 46rem;
  overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(104px, 1fr)); gap: 8px; margin: 16px 0; }
.numbers div { background: var(--tile); border-radius: 8px; padding: 10px 12px; }
.numbers dt { color: var(--faint); font-size: .8rem; }
.numbers dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 16px 24px; }
.charts svg { width: 100%; height: auto; max-width: 520px; display: block; }
.charts svg text { font-family: inherit !important; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 12px 16px; }
.pictures img { width: 100%; height: auto; border-radius: 4px; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 500; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 11rem; }
h2 + p, h2 + ul, .legend { break-after: avoid; }
thead th { color: var(--faint); vertical-align: bottom; }
th:first-child { padding-left: 0; text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody td.bar { min-width: 92px; background: linear-gradient(to right, var(--bar-faint)
  calc(var(--share) * 100%), transparent 0); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.sortable { font-size: .84rem; }
.sortable th, .sortable td { padding: 4px 6px; }
.sortable th:first-child { padding-left: 0; }
.sortable td.bar { min-width: 64px; }
.sortable button { all: unset; cursor: pointer; }
.sortable button:focus-visible { outline: 2px solid var(--bar); }
.sortable [aria-sort] button { color: var(--ink); font-weight: 600; }
.sortable [aria-sort=descending] button::after { content: " ↓"; }
.sortable [aria-sort=ascending] button::after { content: " ↑"; }
.matrix td { min-width: 32px; padding: 4px 6px; text-align: center; border: 1px solid var(--line);
  background: color-mix(in srgb, var(--bar) calc(var(--share) * 65%), transparent); print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); display: inline-block; text-align: left; }
.matrix thead th { padding: 4px 6px; text-align: center; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 6px 20px; font-size: .9rem;
  max-width: none; }
.legend span { display: inline-block; width: 32px; height: 6px; margin-right: 8px; vertical-align: 3px;
  outline: 1px solid #000; background: var(--c); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.legend span.dashed { background: repeating-linear-gradient(90deg, var(--c) 0 8px, #000 8px 14px); }
@media (max-width: 480px) { body { font-size: 15px; } h1 { font-size: 1.35rem; } .numbers dd { font-size: 1.2rem; } }
@page { margin: 14mm; }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --faint: #444; --line: #bbb; --tile: #f3f5f8;
  --bar: #0072b2; --bar-faint: #0072b233; } main { max-width: none; padding: 0; } .scroll { overflow: visible; }
  .pictures { grid-template-columns: repeat(2, 1fr); } }
"""

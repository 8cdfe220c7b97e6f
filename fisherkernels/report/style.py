"""The page's style sheet: system fonts, one column, light and dark by the reader's preference."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --panel: #ffffff; --ink: #1d2125; --muted: #5c636b; --rule: #dfe2e5;
  --fisher-ae: #1f66ad; --vae: #b4540a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --panel: #1c1f23; --ink: #e4e6e8; --muted: #a0a7ae; --rule: #353a40;
    --fisher-ae: #6fb1f2; --vae: #f0a35c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1000px; margin: 0 auto; padding: 40px 24px 72px; }
h1 {
  font-size: clamp(1.6rem, 4.5vw, 2.2rem); line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 6px;
  text-wrap: balance;
}
h2 { font-size: 1.3rem; line-height: 1.3; margin: 56px 0 10px; padding-top: 18px; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 26px 0 6px; }
p, figcaption, .verdict, li { max-width: 70ch; }
p { margin: 0 0 14px; }
ul { padding-left: 1.2em; margin: 0 0 14px; }
li { margin-bottom: 6px; }
.subtitle { color: var(--muted); margin-bottom: 28px; }
.verdict { font-size: 1.25rem; line-height: 1.4; font-weight: 600; margin: 0 0 10px; text-wrap: balance; }
.fisher-ae { color: var(--fisher-ae); }
.vae { color: var(--vae); }
.scroll { overflow-x: auto; margin: 16px 0; }
table {
  border-collapse: collapse; min-width: 100%; font-size: 0.9rem; line-height: 1.4; font-variant-numeric: tabular-nums;
}
caption { text-align: left; color: var(--muted); padding-bottom: 8px; }
th, td { text-align: left; padding: 7px 18px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; }
thead th { white-space: nowrap; }
.stack td { white-space: nowrap; }
tbody th { font-weight: 500; color: var(--muted); }
td.number, th.number { text-align: right; white-space: nowrap; }
figure { margin: 18px 0 30px; }
figcaption { color: var(--muted); font-size: 0.9rem; margin-top: 10px; }
figcaption b { color: var(--ink); }
.panels { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 290px), 1fr)); }
.panels.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.panel { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: 10px; min-width: 0; }
.panel h3 { margin: 0 0 8px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
img.pixels { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 3px; }
.strips { display: grid; grid-template-columns: 8.5em 1fr; gap: 8px 14px; align-items: center; }
.strips > span { font-size: 0.9rem; line-height: 1.25; }
details { margin: 16px 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 560px) {
  body { font-size: 16px; }
  main { padding: 24px 16px 48px; }
  .strips { grid-template-columns: 1fr; gap: 3px; }
  .strips > span { margin-top: 9px; }
  th, td { padding-right: 12px; }
  .stack thead { display: none; }
  .stack tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--rule); }
  .stack th, .stack td { display: flex; justify-content: space-between; gap: 16px; padding: 1px 0; border: 0; }
  .stack tbody th { color: var(--ink); font-weight: 600; }
  .stack td::before { content: attr(data-label); color: var(--muted); }
}
"""

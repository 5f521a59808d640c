"""How the page looks: one style sheet, by day and by night."""

from __future__ import annotations

STYLE = """
:root{--ink:#1b2430;--soft:#586374;--page:#fff;--card:#f5f7fa;--edge:#c9d1dc;
--score:#0b5cad;--alert:#c62828;--label:#b26a00;--expected:#9fb6cf;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#a7b0be;--page:#12161c;--card:#1b212a;
--edge:#3a4452;--score:#6cb2ff;--alert:#ff7b72;--label:#e3b341;--expected:#4d6177}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:1.5rem 0 .5rem;overflow-wrap:anywhere}
header p,figcaption,caption,summary{color:var(--soft);font-size:.875rem}
a{color:var(--score)}
:focus-visible{outline:3px solid var(--score);outline-offset:2px}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;background:var(--page)}
.caveat{border-left:.3rem solid var(--alert);background:var(--card);padding:.5rem 1rem;font-weight:600}
.facts{display:flex;flex-wrap:wrap;gap:.75rem;margin:1rem 0}
.facts div{background:var(--card);border:1px solid var(--edge);border-radius:.4rem;padding:.5rem .9rem}
dt{color:var(--soft);font-size:.875rem}
dd{margin:0;font-size:1.15rem;font-weight:600}
.device{border-top:2px solid var(--edge);margin-top:2rem}
figure{margin:.5rem 0}
.plot{display:grid;grid-template-columns:4.5rem 1fr;gap:.25rem .5rem;align-items:center}
.name{color:var(--soft);font-size:.8rem;text-align:right}
.axis{display:flex;flex-direction:column;justify-content:space-between;height:100%}
.times{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;gap:.5rem}
svg{display:block;width:100%;background:var(--card);border:1px solid var(--edge)}
.tall{height:9rem}.low{height:4rem}.lane{height:1rem}
path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
path.score{stroke:var(--score);stroke-width:1.3}
path.threshold{stroke:var(--ink);stroke-width:1.3;stroke-dasharray:5 4}
path.reading{stroke:var(--ink);stroke-width:1}
path.expected{stroke:var(--expected);stroke-width:3}
rect.warm{fill:var(--edge);opacity:.5}
rect.label{fill:var(--label);opacity:.35}
rect.alert{fill:var(--alert)}
rect.faint{opacity:.25}
rect.stored{fill:var(--soft)}
.lane rect.label{opacity:1}
.fields{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(22rem,100%),1fr));gap:0 1rem}
details{margin:.5rem 0}
summary{cursor:pointer;padding:.25rem 0}
.scroll{overflow-x:auto}
details .scroll{max-height:30rem}
tbody th{white-space:nowrap}
table{border-collapse:collapse;font-size:.875rem;width:100%}
caption{text-align:left;padding-bottom:.4rem}
th,td{border-bottom:1px solid var(--edge);padding:.3rem .6rem;text-align:left;vertical-align:top}
td{font-variant-numeric:tabular-nums}
thead th{position:sticky;top:0;background:var(--page)}
details caption{position:absolute;clip-path:inset(50%)}
@media print{details .scroll{max-height:none}}
"""

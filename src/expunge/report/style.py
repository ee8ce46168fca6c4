# SPDX-License-Identifier: Apache-2.0
"""Style sheet and the few lines of script; the page reads well without the script."""

from __future__ import annotations

_LIGHT = """
--bg:#faf8f3;--surface:#ffffff;--sunk:#f3efe6;--ink:#1d1b17;--muted:#5f5a50;--line:#e0dacd;--grid:#ebe6da;
--accent:#1f4e79;--good:#17633d;--goodbg:#e3f2e8;--warn:#7a4f00;--warnbg:#fbefd2;--bad:#a8201a;--badbg:#fbe4e1;
--near:#17633d1f;--m0:#0a6a9c;--m1:#b3500a;--m2:#1b7a4d;--m3:#87408b;--m4:#6d6100;--m5:#b8245c;--m6:#3f4fb5;--m7:#6b4a3a;
"""
_DARK = """
--bg:#14161a;--surface:#1b1e24;--sunk:#23272e;--ink:#ebe7df;--muted:#aba69b;--line:#363b44;--grid:#2a2e36;
--accent:#90c2ea;--good:#7fd3a4;--goodbg:#17332a;--warn:#ebbf62;--warnbg:#36290f;--bad:#ff9d92;--badbg:#421d1b;
--near:#7fd3a42e;--m0:#5bb5e8;--m1:#f09b57;--m2:#62c795;--m3:#cf92d6;--m4:#cdbf4e;--m5:#f086a9;--m6:#99a6f5;--m7:#c9a48f;
"""

_BASE = """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.6 var(--sans);
  --sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif;
  --serif:"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua",Georgia,"Liberation Serif",serif;
  --mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
a{color:var(--accent)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:3px}
.sr,.skip:not(:focus){position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
  white-space:nowrap}
.needs-js,.sort{display:none}
.js .needs-js{display:inline-block}
button{font:inherit;font-size:13px;color:var(--ink);background:var(--surface);border:1px solid var(--line);
  border-radius:99px;padding:3px 13px;cursor:pointer}
button:hover{border-color:var(--accent);color:var(--accent)}
.topbar{display:flex;align-items:center;gap:14px;max-width:1300px;margin:0 auto;padding:18px 28px 0}
.topbar .theme{margin-left:auto}
.logo{font:600 17px/1 var(--serif);letter-spacing:.01em;display:inline-flex;align-items:center}
.logo .bar{width:30px;height:13px;margin-right:9px}
.kind{color:var(--muted);font-size:13px;border-left:1px solid var(--line);padding-left:14px}
.layout{display:grid;grid-template-columns:168px minmax(0,1fr);gap:38px;max-width:1300px;margin:0 auto;
  padding:0 28px}
.contents{position:sticky;top:26px;align-self:start;margin-top:46px;font-size:13.5px}
.contents ol{list-style:none;margin:0;padding:0;border-left:1px solid var(--line)}
.contents a{display:block;padding:4px 0 4px 14px;color:var(--muted);text-decoration:none;line-height:1.35}
.contents a:hover{color:var(--accent);box-shadow:-1px 0 0 var(--accent),inset 1px 0 0 var(--accent)}
main{max-width:1010px;min-width:0}
header{padding:34px 0 8px}
section{padding:14px 0 16px;border-top:1px solid var(--line);margin-top:20px}
h1{font:600 clamp(29px,4.6vw,44px)/1.13 var(--serif);letter-spacing:-.012em;margin:6px 0 12px;text-wrap:balance}
h2{font:600 26px/1.25 var(--serif);margin:14px 0 10px;letter-spacing:-.005em;text-wrap:balance}
h3{font:600 16px/1.35 var(--sans);margin:24px 0 8px}
h4{font:600 14px/1.4 var(--sans);margin:16px 0 4px}
p{margin:0 0 12px;max-width:70ch;text-wrap:pretty}
ul,ol{max-width:70ch;padding-left:22px}
li{margin:3px 0}
small{font-size:12px}
code,pre,.mono dd{font-family:var(--mono);font-size:13px}
.facts-line{color:var(--muted);font-size:14px;margin-bottom:22px}
.lead{font:400 clamp(19px,2.3vw,23px)/1.45 var(--serif);max-width:56ch;margin-bottom:9px}
.claimline{color:var(--muted);margin-top:14px}
.nottested{margin-top:10px}
.chip{display:inline-block;font-size:12px;line-height:1.3;font-weight:600;border-radius:5px;padding:2px 8px;
  background:var(--sunk);color:var(--ink)}
.claim-exact,.claim-statistical{background:var(--goodbg);color:var(--good)}
.claim-approximate{background:var(--sunk);color:var(--accent)}
.claim-suppression{background:var(--warnbg);color:var(--warn)}
.j-good{color:var(--good)}
.j-warn{color:var(--warn)}
.j-bad{color:var(--bad)}
.chip.j-good,.pill.j-good,td.j-good{background:var(--goodbg)}
.chip.j-warn,.pill.j-warn,td.j-warn{background:var(--warnbg)}
.chip.j-bad,.pill.j-bad,td.j-bad{background:var(--badbg)}
.alarmbox{background:var(--badbg);border-left:4px solid var(--bad);padding:12px 18px;
  border-radius:0 8px 8px 0;margin:18px 0;font-size:14.5px}
.alarmbox p,.alarmbox ul{margin:0 0 4px;max-width:none}
.alarmhead{font-weight:650;color:var(--bad)}
.alarmbox pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:8px 0 2px}
.alarm{background:var(--warnbg);border-left:4px solid var(--warn);padding:9px 16px;border-radius:0 8px 8px 0;
  max-width:none}
.alarm+h1,.alarmbox+h1{margin-top:26px}
.aside{color:var(--muted);font-size:14.5px}
"""

_PARTS = """
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(262px,1fr));gap:16px}
.card{background:var(--surface);border:1px solid var(--line);border-radius:12px;padding:16px 18px 12px;
  display:flex;flex-direction:column}
.card h3{margin:0;font-size:14.5px}
.arrow{color:var(--muted);font-weight:400}
.who{font-size:13px;color:var(--muted)}
.who strong{color:var(--ink)}
.bigline{margin:6px 0 4px}
.big{font:600 38px/1.1 var(--serif);font-variant-numeric:lining-nums tabular-nums;letter-spacing:-.02em}
.ci{font-size:13px;color:var(--muted);margin-left:10px;white-space:nowrap}
.chips{margin:0 0 8px}
.around{font-size:13.5px;margin:0 0 6px}
.means{color:var(--muted);font-size:13px;line-height:1.45;margin:0}
.card .means{margin-top:auto;padding-top:6px;border-top:1px solid var(--line)}
.facts{margin:8px 0;display:grid;gap:0}
.facts>div{display:grid;grid-template-columns:minmax(120px,190px) minmax(0,1fr);gap:16px;padding:6px 0;
  border-bottom:1px solid var(--grid)}
dt{color:var(--muted);font-size:14px}
dd{margin:0;overflow-wrap:anywhere}
.mono>div{grid-template-columns:minmax(120px,260px) minmax(0,1fr)}
details{border:1px solid var(--line);border-radius:10px;background:var(--surface);margin:9px 0;padding:0 18px}
summary{cursor:pointer;padding:11px 0;line-height:1.45}
details[open]{padding-bottom:12px}
details details{background:var(--bg)}
.method summary .chip,.hint{margin-left:9px}
.hint{color:var(--muted);font-size:13px}
.formula,.commands{background:var(--sunk);border-radius:8px;padding:13px 16px;overflow-x:auto;line-height:1.55}
.formula{white-space:pre-wrap}
.cite{font-style:italic}
.swatch{vertical-align:-2px;margin-right:6px}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:12px;background:var(--surface)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
.nowrap{white-space:nowrap}
.metrics{border-collapse:separate;border-spacing:0}
.metrics th,.metrics td{padding:9px 8px;text-align:right;border-top:1px solid var(--grid);vertical-align:top;
  font-size:14px;line-height:1.4}
.metrics tr>:last-child{padding-right:14px}
.metrics td{white-space:nowrap}
.metrics small{display:block;color:var(--muted);font-weight:400;font-size:11.5px;line-height:1.4;margin-top:2px}
.metrics th:first-child{text-align:left;min-width:206px;max-width:230px;position:sticky;left:0;
  background:var(--surface);font-weight:400;z-index:1;padding-left:14px}
.metrics .mtitle{font-weight:600}
.metrics thead th{font-weight:600;vertical-align:bottom;border-top:0;border-bottom:1.5px solid var(--ink)}
.metrics thead th:first-child{font-weight:600}
.metrics .group th:first-child{background:var(--sunk);font:600 15px/1.4 var(--serif);max-width:none;padding-top:7px;
  padding-bottom:7px}
.metrics .group .stay{position:sticky;left:14px;display:inline-flex;flex-wrap:wrap;gap:0 12px;align-items:baseline}
.metrics .group small{font-family:var(--sans);font-size:12.5px;margin:0}
.metrics .n{color:var(--muted);font-size:12.5px}
.pill{font-weight:600;display:inline-block;border-radius:5px;padding:1px 6px;margin:-1px -6px 0 0}
.jmark{margin-left:5px;font-size:11px}
.null{color:var(--muted)}
.null abbr{text-decoration:none;cursor:help}
sup{font-size:10.5px;line-height:0;margin-left:2px}
.js .sort{display:inline-block;font-size:12px;line-height:1.2;padding:0 5px;margin-left:5px;color:var(--muted);
  border-color:transparent;background:none}
.js .sort:hover,.js .sort[aria-pressed=true]{color:var(--accent);border-color:var(--accent)}
.footnotes{font-size:13px;color:var(--muted);margin-top:10px}
.footnotes li:target{color:var(--ink);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:7px 20px;font-size:13px;color:var(--muted);max-width:none}
.plain-table th,.plain-table td{padding:6px 12px 6px 0;text-align:left;border-bottom:1px solid var(--grid)}
.scroll .plain-table tr>:first-child{padding-left:14px}
.plain-table td.j-good,.plain-table td.j-warn,.plain-table td.j-bad{padding-left:12px;font-weight:600}
.examples{display:grid;gap:10px}
.example{border:1px solid var(--line);border-radius:10px;background:var(--surface);padding:10px 18px;margin:0}
.example h3{margin:0 0 4px;font-weight:400}
.example th{font-weight:400;color:var(--muted);text-align:left;width:132px;font-size:13.5px;
  padding:3px 12px 3px 0;vertical-align:top}
.example td{padding:3px 0;overflow-wrap:anywhere}
.bar{display:inline-block;height:.82em;background:var(--ink);border-radius:2px;margin-right:5px;
  vertical-align:-.06em}
.b0{width:52px}
.b1{width:30px}
.b2{width:66px}
.size,.overlap{display:inline-block;white-space:nowrap;color:var(--muted);font-size:13px;margin-left:8px}
.overlap{border-left:1px solid var(--line);padding-left:8px}
.untested li{list-style:none;position:relative}
.untested li::before{content:"?";position:absolute;left:-21px;color:var(--warn);font-weight:700}
.mismatches li{margin:7px 0}
footer{max-width:1300px;margin:34px auto 0;padding:18px 28px 40px;border-top:1px solid var(--line);
  color:var(--muted);font-size:13px}
footer p{max-width:none}
"""

_DRAWINGS = """
figure{margin:12px 0}
figcaption{font-weight:600;font-size:14px;margin-bottom:2px}
svg{max-width:100%;height:auto;display:block;overflow:visible}
svg text{font-family:var(--sans);font-size:12px;fill:var(--ink)}
svg .tick{font-size:11px;fill:var(--muted);font-variant-numeric:tabular-nums}
svg .label{fill:var(--muted);font-size:12.5px}
svg .name{font-size:12.5px;font-weight:550;paint-order:stroke;stroke:var(--bg);stroke-width:3px;
  stroke-linejoin:round}
svg .value{font-variant-numeric:tabular-nums}
.swatch{display:inline-block}
.axis{stroke:var(--muted);stroke-width:1}
.grid{stroke:var(--grid);stroke-width:1}
.near{fill:var(--near)}
.refline{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 3}
.leader{stroke:var(--muted);stroke-width:.8}
.mark{fill:currentColor;stroke:var(--surface);stroke-width:1}
.mark.ring{fill:none;stroke:currentColor;stroke-width:2}
.dot{fill:currentColor;opacity:.4}
.cell{fill:var(--surface);stroke:var(--line)}
.lost{fill:var(--bad)}
.refuses{fill:var(--m0)}
.invents{fill:var(--line)}
.shares{min-width:120px}
.answers{min-width:630px}
.answers tr>:first-child{min-width:132px}
.answers td small{white-space:nowrap}
.left{fill:var(--accent)}
.q0{opacity:0}
.q1{opacity:.1}
.q2{opacity:.2}
.q3{opacity:.3}
.q4{opacity:.4}
.q5{opacity:.5}
.whisker{stroke:currentColor;stroke-width:1.6;opacity:.6}
.curve{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}
.mt,.mr{color:var(--ink)}
.m0{color:var(--m0)}
.m1{color:var(--m1)}
.m2{color:var(--m2)}
.m3{color:var(--m3)}
.m4{color:var(--m4)}
.m5{color:var(--m5)}
.m6{color:var(--m6)}
.m7{color:var(--m7)}
.forget{color:var(--m1)}
.retain{color:var(--m0)}
.curve.retain{stroke-dasharray:6 3}
svg text.name.forget{fill:var(--m1)}
svg text.name.retain{fill:var(--m0)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:18px 28px}
.panels.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,262px),1fr))}
.panels figure{margin:0}
.run{border-top:1px solid var(--grid);padding-top:14px;display:grid;grid-template-columns:130px minmax(0,1fr);gap:14px}
.run:first-child{border-top:0}
.run h3{margin:0}
.run h3 small{display:block;font-weight:400;color:var(--muted);line-height:1.4;margin:3px 0 0 2px}
.run .panels{grid-template-columns:repeat(auto-fit,minmax(min(100%,280px),1fr))}
.narrow-only{display:none}
"""

_MEDIA = """
@media(max-width:1020px){
  .layout{display:block}
  .contents{position:static;margin:16px 0 0;overflow-x:auto}
  .contents ol{display:flex;border:0;gap:18px}
  .contents a{padding:4px 0;white-space:nowrap}
  .contents a:hover{box-shadow:none}
  main{margin:0 auto}
}
@media(max-width:560px){
  body{font-size:15.5px}
  .topbar{padding:14px 18px 0}
  .layout,footer{padding-left:18px;padding-right:18px}
  header{padding-top:20px}
  .run{display:block}
  .wide-only{display:none}
  .narrow-only{display:block}
  .facts>div,.mono>div{grid-template-columns:1fr;gap:0}
  .metrics th:first-child{min-width:150px;max-width:160px}
  .metrics small.means{display:none}
  .metrics th,.metrics td{padding:8px 9px}
  .example th{width:92px}
  .example{padding:10px 14px}
  details{padding:0 14px}
  .cards{grid-template-columns:1fr}
}
@media(prefers-reduced-motion:reduce){
  html{scroll-behavior:auto}
}
@media print{
  .contents,.topbar button,.sort,.toggle-all,.skip{display:none!important}
  .layout{display:block;padding:0}
  body{font-size:11pt;background:#fff}
  main{max-width:none}
  section{break-inside:auto}
  .card,.example,figure,.alarmbox,tr{break-inside:avoid}
  h2,h3{break-after:avoid}
  .scroll{overflow:visible;border:0}
  .metrics th:first-child{position:static;min-width:120px}
  .metrics th,.metrics td{padding:3px 5px;font-size:8.5pt}
  .metrics small.means{display:none}
  *{-webkit-print-color-adjust:exact;print-color-adjust:exact}
}
"""

CSS = (
    f":root{{color-scheme:light;{_LIGHT}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{_DARK}}}}}"
    f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{_DARK}}}}}" + _BASE + _PARTS + _DRAWINGS + _MEDIA
)

SCRIPT = """
(function(){
var root=document.documentElement,all=function(q,e){return Array.from((e||document).querySelectorAll(q))};
root.classList.add('js');
var wants=window.matchMedia('(prefers-color-scheme: dark)'),theme=document.querySelector('.theme');
function dark(){return root.dataset.theme?root.dataset.theme==='dark':wants.matches}
function name(){theme.textContent=dark()?'Light':'Dark';
theme.setAttribute('aria-label','Switch to the '+(dark()?'light':'dark')+' theme')}
theme.addEventListener('click',function(){root.dataset.theme=dark()?'light':'dark';name()});
wants.addEventListener('change',name);name();
all('.sort').forEach(function(button){button.addEventListener('click',function(){
var row=button.closest('tr'),table=button.closest('table'),down=button.dataset.down!=='1';
var order=Array.from(row.cells).slice(2).map(function(cell,i){
return {at:i+2,v:cell.dataset.value===undefined?null:parseFloat(cell.dataset.value)}});
order.sort(function(a,b){if(a.v===null||b.v===null)return (a.v===null)-(b.v===null);return down?b.v-a.v:a.v-b.v});
all('tr',table).forEach(function(line){if(line.classList.contains('group'))return;
var cells=Array.from(line.cells);order.forEach(function(o){line.appendChild(cells[o.at])})});
all('.sort',table).forEach(function(other){other.setAttribute('aria-pressed','false');other.textContent='⇅'});
button.dataset.down=down?'1':'0';button.setAttribute('aria-pressed','true');
button.textContent=down?'↧':'↥'})});
var show=document.querySelector('.toggle-all');
if(show)show.addEventListener('click',function(){var on=show.getAttribute('aria-pressed')!=='true';
show.setAttribute('aria-pressed',String(on));show.textContent=on?'Hide all text':'Show all text';
all('details.example').forEach(function(d){d.open=on})});
window.addEventListener('beforeprint',function(){all('details:not(.example)').forEach(function(d){d.open=true})});
})();
"""


def drawing_style(svg: str) -> str:
    """Return a drawing that carries its own style, to stand in a file of its own; light."""
    start = svg.index(">") + 1
    head = svg[: start - 1].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    return f"{head}><style>:root{{{_LIGHT}--sans:sans-serif}}{_DRAWINGS}</style>{svg[start:]}\n"

"""The style sheet of the report, for a bright screen, a dark one, and paper."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1d2329; --soft: #5d6873; --edge: #dfe3e6;
  --grid: #e4e7ea; --busy: #5b86b5; --attn: #2f6db5; --attn-odd: #86b1e0; --ffn: #1f8566; --ffn-odd: #7cc9ae;
  --head: #7d56b0; --head-odd: #7d56b0; --kv: #b3801a; --kv-odd: #dcb565; --other: #68737e; --other-odd: #a3adb6;
  --on: #fff; --on-odd: #10202f;
  --disk: #d8432f; --host-slot: #e88a1a; --h2d: #b8359b; --device-slot: #8f5a34; --kv-wait: #c9a400; --stage: #1a9aa6;
  --launch: #59636e; --start: #aab3bb; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --card: #1c2227; --ink: #e6e9ec; --soft: #98a4af;
  --edge: #333c44; --grid: #2d353c; --busy: #5c8fc7; --attn: #4785d0; --attn-odd: #8fbcec; --ffn: #2a9e7b;
  --ffn-odd: #86d4ba; --head: #9a74cf; --head-odd: #9a74cf; --kv: #c4932f; --kv-odd: #e3c27c; --other: #7c8893;
  --other-odd: #aeb8c1; --disk: #f0604c; --host-slot: #f2a03d; --h2d: #d960bd; --device-slot: #b98057;
  --kv-wait: #e0c02c; --stage: #35bcc8; --launch: #8b97a3; --start: #58636d; } }
@media print { :root { --page: #fff; --card: #fff; } section { break-inside: avoid; box-shadow: none !important; } }
* { box-sizing: border-box; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { margin: 0 auto; padding: 28px 22px 40px; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { overflow-wrap: break-word; } header p { margin: 0; color: var(--soft); }
h1 { margin: 4px 0 18px; font-size: 27px; line-height: 1.25; font-weight: 650; text-wrap: balance; }
h2 { margin: 0 0 2px; font-size: 16px; font-weight: 650; }
section { margin: 0 0 18px; padding: 16px 18px; background: var(--card); border: 1px solid var(--edge);
  border-radius: 8px; }
section > p { margin: 0 0 10px; color: var(--soft); font-size: 13.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 18px; }
.tiles div { padding: 10px 14px; background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  color: var(--soft); font-size: 13px; }
.tiles b { display: block; color: var(--ink); font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 18px; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, -apple-system, "Segoe UI", Arial, sans-serif; }
.scroll { overflow-x: auto; } .scroll svg { min-width: 760px; }
svg .name { text-anchor: end; fill: var(--ink); font-size: 12.5px; } svg .small { fill: var(--soft); font-size: 11px; }
svg .tick { text-anchor: middle; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; } svg .begin { text-anchor: start; }
svg .grid { stroke: var(--grid); } svg .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .window { fill: var(--busy); opacity: .16; } svg .busy { fill: var(--busy); } svg .many { fill: var(--other); }
svg .attn { fill: var(--attn); } svg .attn.odd { fill: var(--attn-odd); }
svg .ffn { fill: var(--ffn); } svg .ffn.odd { fill: var(--ffn-odd); }
svg .head { fill: var(--head); } svg .head.odd { fill: var(--head-odd); }
svg .kv { fill: var(--kv); } svg .kv.odd { fill: var(--kv-odd); }
svg .other { fill: var(--other); } svg .other.odd { fill: var(--other-odd); }
svg text.on, svg text.on.head.odd { fill: var(--on); text-anchor: middle; pointer-events: none; }
svg text.on.odd { fill: var(--on-odd); }
svg .counter { stroke-width: 1; } svg .queue { fill: var(--attn-odd); stroke: var(--attn); fill-opacity: .55; }
svg .slots { fill: var(--ffn-odd); stroke: var(--ffn); fill-opacity: .55; }
.cause-disk { --cause: var(--disk); } .cause-host-slot { --cause: var(--host-slot); }
.cause-h2d { --cause: var(--h2d); } .cause-device-slot { --cause: var(--device-slot); }
.cause-kv { --cause: var(--kv-wait); } .cause-stage { --cause: var(--stage); }
.cause-launch { --cause: var(--launch); } .cause-start { --cause: var(--start); }
svg .solid { fill: var(--cause); } svg .faint { fill: var(--cause); opacity: .16; }
svg .hatch.cause-disk { fill: url(#cause-disk); } svg .hatch.cause-host-slot { fill: url(#cause-host-slot); }
svg .hatch.cause-h2d { fill: url(#cause-h2d); } svg .hatch.cause-device-slot { fill: url(#cause-device-slot); }
svg .hatch.cause-kv { fill: url(#cause-kv); } svg .hatch.cause-launch { fill: url(#cause-launch); }
svg .hatch.cause-stage { fill: url(#cause-stage); } svg .hatch.cause-start { fill: url(#cause-start); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 0; padding: 0; list-style: none; font-size: 13px;
  color: var(--soft); }
.legend i { display: inline-block; width: 22px; height: 12px; margin-right: 6px; border-radius: 2px;
  vertical-align: -1px; }
.legend i.waits, td .bar.waits { background: repeating-linear-gradient(135deg, var(--cause) 0 3px,
  color-mix(in srgb, var(--cause) 18%, transparent) 3px 6px); }
.pair { background: linear-gradient(90deg, var(--even) 50%, var(--odd) 50%); }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
th { color: var(--soft); font-weight: 500; font-size: 12.5px; text-align: left; }
th, td { padding: 4px 10px 4px 0; border-bottom: 1px solid var(--grid); vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.wide { width: 45%; } td .track { display: flex; height: 13px; background: var(--grid); border-radius: 2px;
  overflow: hidden; }
td .bar { background: var(--busy); } td .bar.held { background: repeating-linear-gradient(135deg, var(--soft) 0 2px,
  transparent 2px 5px); opacity: .6; }
td.key { color: var(--soft); width: 34%; overflow-wrap: anywhere; }
td.value { overflow-wrap: anywhere; white-space: pre-wrap; }
"""

// A little Markdown: fenced code, headings, lists, bold, italic and `code`. Everything else stays as it is written.
//
// A passage of text is cut into blocks, and a block into leaves. A leaf is a range of the text; `leaf(start, end)`
// makes its nodes, so that whoever draws tokens knows which ones a piece of text came from.

import { element } from "./dom.js";

const FENCE = /^\s{0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+/;
const INLINE = /`([^`\n]+)`|\*\*(?=\S)([^\n]+?)\*\*|\*(?=[^\s*])([^*\n]+?)\*/g;

/** Draw `text` into `parent`, leaving blocks as they are that have not changed since the last time. */
export function drawMarkdown(parent, text, leaf) {
  const blocks = parse(text);
  const keys = blocks.map((block) => JSON.stringify(block));
  let kept = 0;
  while (kept < keys.length && keys[kept] === parent.drawn?.[kept]) kept += 1;
  while (parent.childNodes.length > kept) parent.lastChild.remove();
  parent.append(...blocks.slice(kept).map((block) => makeBlock(block, text, leaf)));
  parent.drawn = keys;
}

/** Cut a text into blocks: what each is, and the ranges of the text in it. */
function parse(text) {
  const blocks = [];
  const lines = cutLines(text);
  for (let index = 0; index < lines.length; ) {
    const line = lines[index].text;
    const take = FENCE.test(line) ? takeCode : HEADING.test(line) ? takeHeading : ITEM.test(line) ? takeList : takeLines;
    if (line.trim()) index = take(lines, index, blocks);
    else index += 1;
  }
  return blocks;
}

function cutLines(text) {
  const lines = [];
  let start = 0;
  for (const line of text.split("\n")) {
    lines.push({ text: line, start, end: start + line.length });
    start += line.length + 1;
  }
  return lines;
}

function takeCode(lines, first, blocks) {
  const [, fence, language] = FENCE.exec(lines[first].text);
  let last = first + 1;
  while (last < lines.length && !lines[last].text.trim().startsWith(fence)) last += 1;
  const start = Math.min(lines[first].end + 1, lines.at(-1).end);
  const end = last > first + 1 ? lines[last - 1].end : start;
  blocks.push({ kind: "code", language, start, end });
  return last + 1;
}

function takeHeading(lines, index, blocks) {
  const [mark, signs] = HEADING.exec(lines[index].text);
  blocks.push({ kind: "heading", level: signs.length, start: lines[index].start + mark.length, end: lines[index].end });
  return index + 1;
}

/** A list, with items inside items as deep as they are set in; a line without a mark goes on with the item before it. */
function takeList(lines, first, blocks) {
  const items = [];
  let index = first;
  for (; index < lines.length && lines[index].text.trim(); index += 1) {
    const line = lines[index];
    const found = ITEM.exec(line.text);
    if (FENCE.test(line.text) || HEADING.test(line.text)) break;
    if (found) {
      const ordered = /\d/.test(found[2]);
      items.push({
        depth: Math.floor(found[1].length / 2),
        number: ordered ? parseInt(found[2], 10) : null,
        start: line.start + found[0].length,
        end: line.end,
      });
    } else items.at(-1).end = line.end;
  }
  blocks.push({ kind: "list", items });
  return index;
}

function takeLines(lines, first, blocks) {
  let last = first + 1;
  while (last < lines.length && goesOn(lines[last].text)) last += 1;
  blocks.push({ kind: "paragraph", start: lines[first].start, end: lines[last - 1].end });
  return last;
}

const goesOn = (line) => line.trim() && ![FENCE, HEADING, ITEM].some((mark) => mark.test(line));

function makeBlock(block, text, leaf) {
  if (block.kind === "list") return makeList(block.items, text, leaf);
  if (block.kind === "code") {
    const code = element("code", {}, ...leaf(block.start, block.end));
    return element("pre", { tabIndex: 0, aria: { label: `${block.language || "Code"} block` } }, code);
  }
  const tag = block.kind === "heading" ? `h${Math.min(block.level + 2, 6)}` : "p";
  return element(tag, {}, ...inline(text, block.start, block.end, leaf));
}

function makeList(items, text, leaf) {
  const top = items[0].depth;
  const list = element(items[0].number === null ? "ul" : "ol");
  if (items[0].number !== null) list.start = items[0].number;
  for (let index = 0; index < items.length; ) {
    const item = element("li", {}, ...inline(text, items[index].start, items[index].end, leaf));
    let next = index + 1;
    while (next < items.length && items[next].depth > top) next += 1;
    if (next > index + 1) item.append(makeList(items.slice(index + 1, next), text, leaf));
    list.append(item);
    index = next;
  }
  return list;
}

function inline(text, start, end, leaf) {
  const nodes = [];
  let at = start;
  for (const found of text.slice(start, end).matchAll(INLINE)) {
    const opens = start + found.index;
    const closes = opens + found[0].length;
    const width = found[2] === undefined ? 1 : 2;
    nodes.push(...leaf(at, opens), mark(found, text, opens + width, closes - width, leaf));
    at = closes;
  }
  nodes.push(...leaf(at, end));
  return nodes;
}

function mark(found, text, start, end, leaf) {
  if (found[1] !== undefined) return element("code", {}, ...leaf(start, end));
  return element(found[2] === undefined ? "em" : "strong", {}, ...inline(text, start, end, leaf));
}

// Elements are made here and nowhere else. Texts become text nodes, so nothing that a model says is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

/** Make an element; `properties` are those of the DOM, `children` are nodes or texts. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { aria = {}, ...others } = properties;
  Object.assign(made, others);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  made.append(...children);
  return made;
}

export function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a text only where it changes: a page at rest causes no layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Say something to those who hear the page; visible texts stand elsewhere. */
export const announce = (text) => setText(find("announce"), text);

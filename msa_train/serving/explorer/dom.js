// The page is built from elements and text nodes. Nothing here takes markup, so what a document, a
// title, a name or an answer says can only ever be shown.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "multiple"]);

/** An element; props: class, on: {event: listener}, vars: {"--name": value}, else attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  element.append(...nodes(children));
  return element;
}

function set(element, name, value) {
  if (value === undefined || value === null || value === false) return;
  if (name === "class") element.className = value;
  else if (name === "on") {
    for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
  } else if (name === "vars") {
    for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
  } else if (PROPERTIES.has(name)) element[name] = value;
  else {
    if (/^(on|style|src)/i.test(name)) throw new Error(`attribute ${name} is not set by this page`);
    if (name === "href" && !/^#\//.test(value)) throw new Error("links lead to places of this page");
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

function nodes(children) {
  return children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false);
}

/** Puts children (elements or strings) in place of what the element held. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

let serial = 0;
export function uniqueId(name) {
  serial += 1;
  return `${name}-${serial}`;
}

/** Text of others, kept from changing the direction of what stands around it. */
export function foreign(text, props = {}) {
  return h("bdi", props, text);
}

/** An input under its label. */
export function field(label, input, ...more) {
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, more);
}

/** A choice of one among a few: radio buttons that look like one control. */
export function segmented(label, options, chosen, onChange) {
  const name = uniqueId("choice");
  const inputs = options.map(([value, text]) =>
    h("label", {},
      h("input", {
        type: "radio", name, value, checked: value === chosen,
        on: { change: () => onChange(value) },
      }),
      h("span", {}, text)));
  return h("fieldset", { class: "segmented" }, h("legend", { class: "unseen" }, label), inputs);
}

export function button(text, onClick, props = {}) {
  return h("button", { type: "button", ...props, on: { click: onClick } }, text);
}

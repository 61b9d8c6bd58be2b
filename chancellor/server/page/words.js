// Elements made of text, and numbers as people read them.

/** Make an element. Strings among the children become text, never HTML. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export const number = (value, digits = value < 10 ? 2 : 1) => value.toLocaleString("en", { maximumFractionDigits: digits });

export const rate = (value) => `${number(value, 1)} tokens/s`;

export const seconds = (value) => (value < 1 ? `${number(Math.round(value * 1000))} ms` : `${number(value)} s`);

export const mebibytes = (value) => (value < 1024 ? `${number(value)} MiB` : `${number(value / 1024)} GiB`);

export const share = (value) => `${number(value * 100)} %`;

/** 134,515,008 is 134.5 M. */
export function count(value) {
  const [by, unit] = value >= 1e9 ? [1e9, " B"] : value >= 1e6 ? [1e6, " M"] : [1, ""];
  return `${number(value / by)}${unit}`;
}
